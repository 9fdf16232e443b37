"""Which torch drives which card, and how much memory is free."""

import os
from pathlib import Path

import pytest
import torch
from tests.refusals import refuses

from llava_mini import hardware
from llava_mini.errors import UserError
from llava_mini.hardware import (
    Card,
    _free_in_groups,
    build_for,
    card_to_measure,
    check_card,
    drives,
    free_bytes,
    has_bf16,
    parse_cards,
)

# As torch's own builds of 2.11 to 2.13 list them.
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
V100 = Card("Tesla V100-SXM2-32GB", (7, 0), 32768 * 2**20)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 24564 * 2**20)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", (12, 0), 32607 * 2**20)


@pytest.mark.parametrize(
    ("arch_list", "card", "driven"),
    [
        (CU126, V100, True),
        (CU130, V100, False),
        (CU126, RTX_4090, True),  # by the kernels of sm_86
        (CU130, RTX_4090, True),
        (CU126, RTX_5090, False),
        (CU130, RTX_5090, True),
        ([], RTX_5090, False),
    ],
)
def test_a_build_drives_the_cards_it_has_kernels_for(arch_list: list[str], card: Card, driven: bool) -> None:
    assert drives(arch_list, card.capability) == driven


def test_binary_kernels_stay_in_their_generation_and_the_drivers_compiler_goes_on() -> None:
    assert not drives(["sm_89"], (8, 6))  # newer than the card
    assert not drives(["sm_80"], (9, 0))
    assert drives(["compute_80"], (9, 0))
    assert drives(["sm_90a"], (9, 0))
    assert not drives(["what"], (9, 0))


def test_a_build_is_advised_that_drives_the_card() -> None:
    assert (build_for(V100.capability), build_for(RTX_4090.capability), build_for(RTX_5090.capability)) == (
        "cu126",
        "cu130",
        "cu130",
    )


def test_a_run_that_the_card_cannot_do_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"V100.*sm_75.*pip install.*cu126"):
        check_card(V100, CU130, "16-mixed")
    with refuses("trainer.precision", "bf16-mixed", "16-mixed (hardware=v100_32gb) and 32-true"):
        check_card(V100, CU126, "bf16-mixed")
    check_card(V100, CU126, "16-mixed")
    check_card(RTX_5090, CU130, "bf16-mixed")
    assert has_bf16(RTX_4090.capability)


def test_the_drivers_list() -> None:
    answer = "Tesla V100-SXM2-32GB, 7.0, 32768\nNVIDIA GeForce RTX 5090, 12.0, 32607\n"
    assert parse_cards(answer) == [V100, RTX_5090]
    assert parse_cards("") == []
    with pytest.raises(ValueError, match="unpack"):
        parse_cards("No devices were found")


def _group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_control_group_limits_what_is_free(tmp_path: Path) -> None:
    """Version 2: the tightest of a group and those around it; what was read from files gives way."""
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("0::/outer/inner\n")
    _group(root, {})  # the root of a machine has no limit
    _group(root / "outer", {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "inactive_file 300\n"})
    _group(root / "outer" / "inner", {"memory.max": "max\n", "memory.current": "900\n", "memory.stat": ""})
    assert _free_in_groups(groups, root) == [400]
    _group(root / "outer" / "inner", {"memory.max": "800\n"})
    assert _free_in_groups(groups, root) == [0, 400]


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    files = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "600", "memory.stat": "total_inactive_file 50\n"}
    _group(root / "memory" / "job", files)
    assert _free_in_groups(groups, root) == [450]


def test_no_control_groups(tmp_path: Path) -> None:
    assert _free_in_groups(tmp_path / "none", tmp_path) == []


def test_free_memory_of_this_machine() -> None:
    free = free_bytes(torch.device("cpu"))
    assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver has and torch holds unused, but no more than the process may take."""
    known = {"mem_get_info": (300, 1000), "memory_allocated": 200, "memory_reserved": 500}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    for fraction, expected in ((1.0, 600), (0.5, 300), (0.1, 0)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device, value=fraction: value)
        assert free_bytes(torch.device("cuda")) == expected


def test_the_card_to_measure_is_one_that_torch_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU here; --tiny"):
        card_to_measure()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU126)
    monkeypatch.setattr(hardware, "find_cards", lambda: [RTX_4090, V100])
    assert card_to_measure() == RTX_4090
    for card, message in ((RTX_5090, "is built for"), (V100, "has no bfloat16")):
        monkeypatch.setattr(hardware, "find_cards", lambda card=card: [card])
        with pytest.raises(UserError, match=message):
            card_to_measure()
