"""A checkpoint as it lies in a folder: config.json and tensors in one file or several, safetensors or pickled.

Shapes are read first and tensors later, file by file, so that a checkpoint can be refused before anything is written,
and converted in the memory of one of its files. Files are not trusted: pickles are read by `weights_only=True`, and an
index may name files of its own folder only.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_mini.errors import UserError

Shape = list[int]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 4  # tensors that a message names


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a folder.

    Args:
        folder: Where they lie.
        shapes: By name.
        files: Which file holds which names.
        dtype: In which most of them are stored.
    """

    folder: Path
    shapes: dict[str, Shape]
    files: dict[Path, list[str]]
    dtype: torch.dtype

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder; safetensors are preferred where both kinds are there.

        Raises:
            UserError: there is none, a file cannot be read, or the index does not fit.
        """
        files, index = _weight_files(folder)
        shapes: dict[str, Shape] = {}
        held: dict[Path, list[str]] = {}
        counted: Counter[torch.dtype] = Counter()
        for path in files:
            found = _headers(path)
            held[path] = list(found)
            for name, (shape, dtype) in found.items():
                if name in shapes:
                    raise UserError(f"{folder}: tensor {name} stands in two files")
                shapes[name] = shape
                counted[dtype] += torch.Size(shape).numel()
        if absent := sorted(set(index) - shapes.keys()):
            raise UserError(f"{folder}: the index names tensors that no file holds: {some(absent)}")
        dtype = counted.most_common(1)[0][0] if counted else torch.float32
        return cls(folder, shapes, held, dtype)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their names, of one file after another."""
        for path, names in self.files.items():
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in names:
                        yield name, file.get_tensor(name)
            else:
                yield from _unpickled(path).items()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        UserError: there is no folder or no config, or it is no JSON object.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return json_object(folder / "config.json")


def check_shapes(
    where: Path | str, found: Mapping[str, Shape], needed: Mapping[str, Shape], theirs: Callable[[str], str]
) -> None:
    """Compare the tensors of a checkpoint with those of the model that its config describes.

    Args:
        where: The checkpoint, for the message.
        found: Shapes by our names; what has no name of ours keeps its own.
        needed: Shapes by our names.
        theirs: From our name to the checkpoint's.

    Raises:
        UserError: naming missing, unexpected and misshapen tensors, a few of each with their shapes.
    """
    missing = [f"{theirs(name)} {shape}" for name, shape in needed.items() if name not in found]
    extra = [f"{theirs(name)} {shape}" for name, shape in found.items() if name not in needed]
    both = [name for name in needed if name in found and list(found[name]) != list(needed[name])]
    wrong = [f"{theirs(name)}: shape {list(found[name])}, the config says {list(needed[name])}" for name in both]
    kinds = {"missing tensors": missing, "unexpected tensors": extra, "misshapen tensors": wrong}
    if any(kinds.values()):
        raise UserError(f"{where}: " + "; ".join(f"{kind}: {some(names)}" for kind, names in kinds.items() if names))


def some(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that hold the weights, and the names that an index says they hold."""
    for ending, stem in (("safetensors", "model"), ("bin", "pytorch_model")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            return _indexed(index)
        if files := sorted(folder.glob(f"{stem}*.{ending}")):
            return files, []
    raise UserError(f"{folder}: holds no model*.safetensors and no pytorch_model*.bin")


def _indexed(index: Path) -> tuple[list[Path], list[str]]:
    weight_map = json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files")
    files = []
    for name in sorted(set(weight_map.values())):
        if name != Path(name).name or Path(name).suffix not in (".safetensors", ".bin"):
            raise UserError(f"{index}: names the file {name!r}; allowed are weight files of its own folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names the file {name}, which is missing")
        files.append(index.parent / name)
    return files, list(weight_map)


def _headers(path: Path) -> dict[str, tuple[Shape, torch.dtype]]:
    if path.suffix != ".safetensors":
        return {name: (list(tensor.shape), tensor.dtype) for name, tensor in _unpickled(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            return {
                name: (part.get_shape(), _DTYPES.get(part.get_dtype(), torch.float32)) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file ({error})") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch; those of the usual format stay on disk until they are read."""
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch before 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be loaded as tensors and nothing else ({reason})") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path}: holds something else than tensors by name")
    return loaded


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: has no {path.name}") from error
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: no JSON object")
    return value


_IMPOSSIBLE = (
    StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
)  # fmt: skip


@contextmanager
def config_trusted() -> Iterator[None]:
    """What transformers or torch raise for a config.json with impossible values, as one line.

    Raises:
        UserError: in place of theirs.
    """
    try:
        yield
    except UserError:
        raise
    except (
        StrictDataclassError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.json: no model can be built of it: {type(error).__name__}: {reason}") from error
