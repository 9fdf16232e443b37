"""Which torch drives which card."""

import pytest

from llava_mini.errors import UserError
from llava_mini.hardware import Card, build_for, check_card, drives, has_bf16, parse_cards

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
    with pytest.raises(UserError, match=r"trainer.precision=bf16-mixed: Tesla V100.*16-mixed"):
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
