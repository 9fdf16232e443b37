"""Fake tensors, which have no numbers: a step runs on them as on real ones and gives shapes, types and lifetimes only.

Floating-point tensors have no numbers. Tensors of integers and booleans, and floating-point scalars that were made from
these, are real. So a model may count placeholders, select by masks and compute `int(x.max())`, and model code needs no
changes. torch's own FakeTensorMode refuses all of this, because it knows no values at all; an operator on its tensors
takes twice the time of one on these (measured over a 7B model's step).

Masks of every entry against every other grow with the square of the length, and no model reads their values. A mask
that is larger than any list of a batch's entries may be has no numbers either.

Weights of any type that were built on meta become fake tensors too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava_mini.plan.ledger import CASTS, FROZEN, TRAINED, Ledger, is_cast

# Number of values in the largest real tensor that a model reads: the entries of all samples of a planned batch.
LARGEST_REAL = 2**22

_aten = torch.ops.aten
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_Made = list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]


class Outcomes:
    """Cache of new tensors that operators make on meta, by their arguments; not of views and changes in place.

    The layers of a model repeat the same calls again and again. torch computes the shapes of most results in Python; a
    step of a 7B model needs tens of thousands of them, and only hundreds differ. So a plan takes half the time.
    """

    def __init__(self) -> None:
        self._known: dict[Any, _Made | None] = {}

    def of(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return `func(*args, **kwargs)`, whose tensors are all on meta."""
        if not _makes_new(func):
            return func(*args, **kwargs)
        given: list[Tensor] = []
        try:
            key = (func, _key(args, given), _key(tuple(kwargs.items()), given))
            known = self._known.get(key)
        except TypeError:  # an argument that has no hash
            return func(*args, **kwargs)
        if known is None:
            out = func(*args, **kwargs)
            self._known[key] = _made(out, given)
            return out
        made = tuple(torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in known)
        return made if len(func._schema.returns) > 1 else made[0]


@cache
def _makes_new(func: Any) -> bool:
    """Whether, by its schema, an operator returns tensors and none of those that it was given."""
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is None and str(each.type) == "Tensor" for each in returns)


def _key(arg: Any, given: list[Tensor]) -> Any:
    """Key of what in an argument decides the result; tensors are added to `given`."""
    if isinstance(arg, Tensor):
        given.append(arg)
        return arg.dtype, arg.size(), arg.stride(), arg.storage_offset()
    if isinstance(arg, (list, tuple)):
        return tuple([_key(each, given) for each in arg])
    return type(arg), arg  # 1, 1.0 and True are equal but not the same


def _made(out: Any, given: list[Tensor]) -> _Made | None:
    """Size, stride and type of each result; None if one shares memory (`_unsafe_view`) or has more than it needs."""
    tensors = out if isinstance(out, tuple) else (out,)
    if not all(isinstance(each, Tensor) for each in tensors):
        return None
    taken = {each.untyped_storage()._cdata for each in given}
    for each in tensors:
        storage = each.untyped_storage()
        again = torch.empty_strided(each.size(), each.stride(), dtype=each.dtype, device="meta")
        if storage._cdata in taken or storage.nbytes() != again.untyped_storage().nbytes():
            return None
        taken.add(storage._cdata)
    return [(tuple(each.size()), tuple(each.stride()), each.dtype) for each in tensors]


_OUTCOMES = Outcomes()  # shared by all plans of this process, which run the same layers


class FakeTensor(Tensor):
    """Tensor that torch takes for a CPU tensor; `meta` has its shape and, shared by its views, its storage."""

    meta: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: Tensor) -> FakeTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            meta.size(),
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        made.meta = meta
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FakeTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func}: an FakeTensor tensor is used outside `with FakeTensors(ledger)`")


class FakeTensors(TorchDispatchMode):
    """Mode in which no floating-point tensor is allocated; what would be allocated is recorded in the ledger."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def of(self, meta: Tensor, part: str | None = None) -> FakeTensor:
        """Return a fake tensor with the shape and storage of a tensor on meta."""
        self.ledger.note(meta, part)
        return FakeTensor(meta)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(kind, FakeTensor) for kind in types) or self._holds_nothing(func, args, kwargs):
            return self._without_numbers(func, args, kwargs)
        return _mapped(self._kept, func(*args, **kwargs))

    @staticmethod
    def _holds_nothing(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether an operator makes a large mask or a floating-point non-scalar from nothing or from real numbers."""
        shapes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if shapes:
            dtype = kwargs.get("dtype")
            to_floats = dtype is not None and dtype.is_floating_point and args[0].dim() > 0
            return to_floats or (torch.Tag.pointwise in func.tags and _is_mask(torch.broadcast_shapes(*shapes)))
        if not _takes_device(func):
            return False
        tried = func(*args, **{**kwargs, "device": "meta"})
        if not isinstance(tried, Tensor) or not tried.dim():
            return False
        return tried.is_floating_point() or (tried.dtype == torch.bool and _is_mask(tried.shape))

    def _without_numbers(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func._schema.is_mutable and args and isinstance(args[0], Tensor) and not isinstance(args[0], FakeTensor):
            raise NotImplementedError(f"{func}: a real tensor is changed by a fake one")
        if func in _INDEXED:
            args = (args[0], _whole_numbers(args[1]), *args[2:])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        given: dict[int, FakeTensor] = {}

        def meta_of(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, FakeTensor):
                return _like(tensor)
            given[id(tensor.meta)] = tensor
            return tensor.meta

        metas, options = _mapped(meta_of, args), _mapped(meta_of, kwargs)
        out = _OUTCOMES.of(func, metas, options)
        part = CASTS if is_cast(func) and self.ledger.is_weight(metas[0]) else None

        def result(meta: Tensor) -> FakeTensor:
            """Return the fake tensor of a result; an operator that works in place returns the tensor it was given."""
            return given[id(meta)] if id(meta) in given else self.of(meta, part)

        return _mapped(result, out)

    def _kept(self, real: Tensor) -> Tensor:
        """Result of an operator on real numbers: unchanged, or a fake tensor if it is floating-point."""
        if isinstance(real, FakeTensor):
            return real
        if real.is_floating_point() and real.dim():
            return self.of(_like(real))
        if real.device.type == "cpu":
            self.ledger.note(real)
        return real


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _is_mask(shape: Sequence[int]) -> bool:
    return prod(shape) > LARGEST_REAL


def _mapped(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `change` to all tensors of an operator's arguments or results (torch's own takes three times as long)."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(change, each) for each in tree])
    if isinstance(tree, dict):
        return {name: _mapped(change, each) for name, each in tree.items()}
    return tree


def _like(real: Tensor) -> Tensor:
    return torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device="meta")


def _whole_numbers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Replace masks by the indices that they select, because a result's length depends on the mask's values."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found


def replace_weights(module: nn.Module, mode: FakeTensors, part_of: dict[int, str]) -> None:
    """Replace weights and buffers of a module that was built on meta with fake tensors; tied weights stay tied.

    `part_of` has the part of the ledger, by id of a weight, if it is not one of trained or frozen weights as usual.
    """
    made: dict[int, Tensor] = {}
    for each in module.modules():
        tables: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for table in tables:
            for name, weight in table.items():
                if weight is None:
                    continue
                if id(weight) not in made:
                    part = part_of.get(id(weight), TRAINED if weight.requires_grad else FROZEN)
                    made[id(weight)] = _without_numbers(weight, mode, part)
                table[name] = made[id(weight)]


def _without_numbers(weight: Tensor, mode: FakeTensors, part: str) -> Tensor:
    new = mode.of(weight.detach(), part)
    if not isinstance(weight, nn.Parameter):
        return new
    with mode:
        return nn.Parameter(new, requires_grad=weight.requires_grad)
