"""A remembered result is as the operator's own: new memory of the same shape, and never in place of a view."""

from typing import Any

import pytest
import torch

from llava_mini.plan.fake_tensors import Outcomes

aten = torch.ops.aten
META = torch.empty(4, 6, device="meta")
WHOLE = torch.empty(4, dtype=torch.int64, device="meta")


def described(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type, tensor.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mul.Tensor, (META.T, 2.0)),
        (aten.native_layer_norm.default, (META, [6], None, None, 1e-5)),
        (aten.cat.default, ([META, META], 1)),
        (aten._to_copy.default, (META,)),
        (aten.split.Tensor, (META, 2)),
    ],
)
def test_the_second_result_is_as_the_first(func: Any, args: Any) -> None:
    outcomes = Outcomes()
    first, second = (outcomes.of(func, args, {}) for _ in range(2))
    assert type(first) is type(second)
    pairs = [(first, second)] if isinstance(first, torch.Tensor) else list(zip(first, second, strict=True))
    assert all(described(one) == described(other) for one, other in pairs)


def test_a_result_is_remembered_and_has_memory_of_its_own() -> None:
    outcomes, asked = Outcomes(), []

    class Counted:
        _schema = aten.mul.Tensor._schema

        def __call__(self, *args: Any) -> torch.Tensor:
            asked.append(args)
            return aten.mul.Tensor(*args)

    counted = Counted()
    made = [outcomes.of(counted, (META, factor), {}) for factor in (2.0, 2.0, 3.0)]
    assert len(asked) == 2
    assert len({each.untyped_storage()._cdata for each in made}) == 3


@pytest.mark.parametrize(
    ("func", "args"), [(aten.view.default, (META, [24])), (aten._unsafe_view.default, (META, [24]))]
)
def test_a_view_shares_its_memory_the_second_time_too(func: Any, args: Any) -> None:
    outcomes = Outcomes()
    for _ in range(2):
        assert outcomes.of(func, args, {}).untyped_storage()._cdata == META.untyped_storage()._cdata


def test_what_works_in_place_gives_back_what_it_was_given() -> None:
    outcomes = Outcomes()
    for _ in range(2):
        tensor = torch.empty(3, device="meta")
        assert outcomes.of(aten.add_.Tensor, (tensor, 1.0), {}) is tensor


def test_equal_numbers_of_other_types_are_other_arguments() -> None:
    outcomes = Outcomes()
    assert outcomes.of(aten.add.Scalar, (WHOLE, 1), {}).dtype == torch.int64
    assert outcomes.of(aten.add.Scalar, (WHOLE, 1.0), {}).dtype == torch.float32
