"""What an operator gives on meta, remembered: the layers of a model ask for the same again and again.

torch works out the shapes of a result in Python for most operators; a step of a 7B model has tens of thousands of them,
and only hundreds differ. A result is remembered as what it is made of: a tensor that was given (operators in place), a
view of one, or new memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor of a result: `given` is the place of the argument that it is, or whose view it is; None: new memory."""

    given: int | None
    same: bool
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def again(self, given: list[Tensor]) -> Tensor:
        if self.given is None:
            return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")
        return given[self.given] if self.same else given[self.given].as_strided(self.size, self.stride, self.offset)


class Outcomes:
    """Results of operators on meta by what they were given."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[type, tuple[_Made | None, ...]] | None] = {}

    def of(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`, whose tensors are all on meta."""
        given: list[Tensor] = []
        try:
            key = (func, _key(args, given), _key(tuple(kwargs.items()), given))
            new = key not in self._known
        except TypeError:  # an argument without a hash, or of a kind that is not known here
            return func(*args, **kwargs)
        if new:
            out = func(*args, **kwargs)
            self._known[key] = None if torch.Tag.inplace_view in func.tags else _described(out, given)
            return out
        known = self._known[key]
        if known is None:
            return func(*args, **kwargs)
        kind, parts = known
        made = [None if part is None else part.again(given) for part in parts]
        return made[0] if kind is Tensor else kind(made)


def _key(arg: Any, given: list[Tensor]) -> Any:
    """What of an argument decides about the result; tensors are gathered.

    Raises:
        TypeError: nobody knows.
    """
    if isinstance(arg, Tensor):
        given.append(arg)
        return arg.dtype, arg.size(), arg.stride(), arg.storage_offset()
    if isinstance(arg, (list, tuple)):
        return tuple([_key(each, given) for each in arg])
    if isinstance(arg, dict):
        raise TypeError
    return type(arg), arg  # 1, 1.0 and True are equal and not the same


def _described(out: Any, given: list[Tensor]) -> tuple[type, tuple[_Made | None, ...]] | None:
    """How to make it again; None where that is not known."""
    if isinstance(out, Tensor):
        part = _part(out, given)
        return None if part is None else (Tensor, (part,))
    if type(out) not in (list, tuple):
        return None
    parts = [None if each is None else _part(each, given) for each in out]
    if any(part is None and each is not None for part, each in zip(parts, out, strict=True)):
        return None
    fresh = [each.untyped_storage()._cdata for each in out if isinstance(each, Tensor)]
    shared = len(set(fresh)) < len(fresh) and any(part is not None and part.given is None for part in parts)
    return None if shared else (type(out), tuple(parts))


def _part(out: Any, given: list[Tensor]) -> _Made | None:
    if not isinstance(out, Tensor):
        return None
    shape = tuple(out.size()), tuple(out.stride()), int(out.storage_offset()), out.dtype
    for place, tensor in enumerate(given):
        if out is tensor:
            return _Made(place, True, *shape)
    for place, tensor in enumerate(given):
        if out.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            return _Made(place, False, *shape) if out.dtype == tensor.dtype else None
    made = _Made(None, False, *shape)
    return made if made.again([]).untyped_storage().nbytes() == out.untyped_storage().nbytes() else None
