"""`llava-mini doctor` tells what is here and what does not go together."""

import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from llava_mini.cli import main
from llava_mini.commands import doctor
from llava_mini.hardware import Card


def test_what_is_here(capsys) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch          {torch.__version__.split('+')[0]}" in told
    assert "4-bit layers work on" in told


def test_as_json(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"] and report["arch_list"] == torch.cuda.get_arch_list()


def test_a_card_that_this_torch_cannot_drive(monkeypatch, capsys) -> None:
    card = Card("Tesla V100-SXM2-32GB", (7, 0), 32 * 2**30)
    monkeypatch.setattr(doctor, "find_cards", lambda: [card])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "Tesla V100-SXM2-32GB (32.0 GiB, compute capability 7.0), no bfloat16: hardware=v100_32gb" in told
    assert "is built for sm_80, sm_90" in told
    assert "--index-url https://download.pytorch.org/whl/cu126" in told


def test_bitsandbytes_that_does_not_work_is_reported(monkeypatch) -> None:
    def broken(*_args, **_options):
        raise RuntimeError("no kernels\nsecond line")

    monkeypatch.setattr("bitsandbytes.nn.Linear4bit", broken)
    assert doctor.four_bits() == "does not work on cpu: RuntimeError: no kernels"


def test_bitsandbytes_that_cannot_be_loaded_says_why_and_what_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.nn", raising=False)
    assert doctor.four_bits() == "4-bit layers: bitsandbytes is not installed: pip install 'llava-mini-lab[finetune]'"


def test_what_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "version", _not_found)
    report = doctor.diagnosis()
    assert report["packages"]["peft"] is None and report["bitsandbytes"] == "not tried"
    assert "for LoRA, QLoRA: pip install 'llava-mini-lab[finetune]' (brings peft)" in report["advice"]


def _not_found(_name: str) -> str:
    raise PackageNotFoundError


@pytest.mark.parametrize(("flag", "status"), [("--what", 2), ("--help", 0)])
def test_an_unknown_flag_is_a_mistake_and_help_is_given_before_anything_is_tried(monkeypatch, flag, status) -> None:
    tried: list[str] = []
    monkeypatch.setattr(doctor, "four_bits", lambda: tried.append("4 bits"))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", flag])
    assert ended.value.code == status
    assert not tried
