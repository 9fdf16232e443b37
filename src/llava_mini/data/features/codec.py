"""Encodes features as members of a sample and decodes them, in three sizes, and measures the storage error.

    float32   <key>.npy [F, V, N, Dv]                                             4 bytes per number
    float16   <key>.npy [F, V, N, Dv]                                             2
    int8      <key>.npy [F, V, N, Dv] and <key>.scale.npy [F, V, 1, Dv] float16   1: number * scale of its channel

Each channel of a view has its own scale: a few channels of a vision tower are a hundred times larger than the rest, and
one common scale would leave the rest no bits.

Shapes: F frames, V views of a frame, N patches of a view, Dv vision width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import SampleError

FeatureType = Literal["float32", "float16", "int8"]
FEATURE_TYPES: tuple[FeatureType, ...] = ("float32", "float16", "int8")
_FEATURES, _SCALE = "npy", "scale.npy"
_LARGEST = 127  # largest int8 value, symmetric
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)  # smaller scales would be rounded coarsely


def packed(features_FVND: NDArray[np.float32], dtype: FeatureType) -> dict[str, bytes]:
    """Encode features as members of a sample.

    Raises:
        SampleError: The features contain a number that `dtype` cannot represent.
    """
    if dtype == "int8":
        scale = np.abs(features_FVND).max(axis=2, keepdims=True, initial=0) / _LARGEST
        with np.errstate(over="ignore"):
            scale = np.maximum(scale, _SMALLEST_SCALE).astype(np.float16)
        _check_finite(scale, dtype)
        numbers = np.rint(features_FVND / scale.astype(np.float32)).clip(-_LARGEST, _LARGEST).astype(np.int8)
        return {_FEATURES: _npy(numbers), _SCALE: _npy(scale)}
    with np.errstate(over="ignore"):
        numbers = features_FVND.astype(dtype)
    _check_finite(numbers, dtype)
    return {_FEATURES: _npy(numbers)}


def unpacked(members: Mapping[str, bytes]) -> NDArray[np.float32]:
    """Decode the features float32 [F, V, N, Dv] from a sample's members.

    Raises:
        SampleError: The members contain no features, or damaged ones.
    """
    if _FEATURES not in members:
        raise SampleError("it has no features")
    try:
        features = _array(members[_FEATURES])
        if features.dtype != np.int8:
            return features.astype(np.float32)
        return np.multiply(features, _array(members[_SCALE]), dtype=np.float32)
    except (ValueError, KeyError) as error:
        raise SampleError(f"its features are damaged ({error})") from None


def _check_finite(numbers: NDArray[Any], dtype: FeatureType) -> None:
    if not np.isfinite(numbers).all():
        raise SampleError(f"its features are not finite as {dtype}")


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _array(raw: bytes) -> NDArray[Any]:
    """Return the array of an npy member, as a view of its bytes."""
    file = io.BytesIO(raw)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype not in FEATURE_TYPES:
        raise ValueError(f"an array of {dtype}")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape)


@dataclass
class StorageError:
    """Difference between stored features and computed ones: values compared, largest difference, sums of squares."""

    numbers: int = 0
    largest: float = 0.0
    squared: float = 0.0
    squared_features: float = 0.0

    def add(self, computed: NDArray[np.float32], stored: NDArray[np.float32]) -> None:
        """Compare the features of a sample and add the result."""
        difference = (computed - stored).astype(np.float64)
        self.numbers += computed.size
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0)))
        self.squared += float(np.square(difference).sum())
        self.squared_features += float(np.square(computed, dtype=np.float64).sum())

    def merge(self, other: StorageError) -> None:
        """Add the results of other comparisons."""
        self.numbers += other.numbers
        self.largest = max(self.largest, other.largest)
        self.squared += other.squared
        self.squared_features += other.squared_features

    @property
    def relative(self) -> float:
        """Root mean square of the difference as a share of that of the features; 0 where there are none."""
        return math.sqrt(self.squared / self.squared_features) if self.squared_features else 0.0
