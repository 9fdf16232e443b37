"""Optional packages: what is missing or broken is told in one line, and one warning that concerns nobody is not."""

import logging
import sys
from pathlib import Path

import pytest

from llava_mini.errors import UserError
from llava_mini.finetune.packages import require


def test_what_is_not_installed_says_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(
        UserError, match=r"^key: bitsandbytes is not installed: pip install 'llava-mini-lab\[finetune\]'$"
    ):
        require("bitsandbytes.optim", "key")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('libcudart.so.13: cannot open\\nmore')", r"libcudart.so.13: cannot open"),
        ("import no_such_dependency", r"No module named 'no_such_dependency'"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_what_is_installed_and_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    (tmp_path / "broken_one.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        require("broken_one", "key")
    assert str(caught.value) == (
        f"key: broken_one is installed and cannot be loaded ({reason}): pip install --force-reinstall broken_one"
    )


def test_of_bitsandbytes_warnings_one_alone_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    source = (Path(require("bitsandbytes", "key").__file__).parent / "backends" / "cpu" / "ops.py").read_text()
    told = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already `pip install"
    assert told in source, "bitsandbytes words it otherwise now"
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning(told, "No module named 'kernels'")
    logger.warning("another of the same file")
    logging.getLogger("bitsandbytes.autograd._functions").warning("of another file")
    assert [record.message for record in caplog.records] == ["another of the same file", "of another file"]
