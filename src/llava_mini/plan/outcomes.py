"""Cache of what operators make on meta, because the layers of a model repeat the same calls again and again.

torch computes the shapes of most results in Python; a step of a 7B model needs tens of thousands of them, and only
hundreds differ. With the cache a plan takes half the time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_Made = list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]


class Outcomes:
    """New tensors that operators make on meta, by their arguments; views and changes in place are not cached."""

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
