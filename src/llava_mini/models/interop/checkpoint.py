"""Checkpoint in a folder: config.json and tensors in one file or several, safetensors or pickled.

Shapes are read first and tensors later, file by file. So a checkpoint can be refused before anything is written, and
converted in the memory of one of its files. Files are not trusted: pickles are read with `weights_only=True`, an index
may name only files of its own folder, and weights must be finite numbers of a floating type. A file may itself be a
symbolic link, to wherever its user has put the data: the Hub's cache consists of such links.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from llava_mini.errors import UserError
from llava_mini.files import read_json
from llava_mini.models.tensor_files import open_tensors

Shape = list[int]

# Ends of names of tensors that models compute; checkpoints of old versions contain them.
COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOATS = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_UNREADABLE = (  # errors that reading arbitrary bytes as a pickle may raise
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_SHOWN = 4  # number of tensors that a message names


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a folder, with their shapes, files and types."""

    folder: Path
    shapes: dict[str, Shape]  # by name
    files: dict[Path, list[str]]  # names of the tensors in each file
    types: dict[str, str]  # as stored, by name: float16, int8

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        """Read the headers of the checkpoint in a folder; safetensors are preferred where both kinds exist.

        Raises:
            UserError: there is no checkpoint, a file cannot be read, the index does not fit, or there is no tensor.
        """
        files, index = _weight_files(folder)
        shapes: dict[str, Shape] = {}
        contents: dict[Path, list[str]] = {}
        types: dict[str, str] = {}
        for path in files:
            found = _headers(path)
            contents[path] = list(found)
            for name, (shape, stored) in found.items():
                if name in shapes:
                    raise UserError(f"{folder}: tensor {name} is in two files")
                shapes[name], types[name] = shape, stored
        if absent := sorted(set(index) - shapes.keys()):
            raise UserError(f"{folder}: the index names tensors that no file contains: {some(absent)}")
        if not shapes:
            raise UserError(f"{folder}: {', '.join(path.name for path in files)} contains no tensor")
        return cls(folder, shapes, contents, types)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type in which most of the numbers are stored."""
        counted: Counter[str] = Counter()
        for name, stored in self.types.items():
            if stored in _FLOATS:
                counted[stored] += torch.Size(self.shapes[name]).numel()
        return _FLOATS[counted.most_common(1)[0][0]] if counted else torch.float32

    def check_floats(self, names: Iterable[str]) -> None:
        """Refuse weights of these names that are not floating-point numbers; a quantized checkpoint has such weights.

        Raises:
            UserError: naming the first tensor that is not floating-point, and its file.
        """
        wanted = set(names)
        for path, contents in self.files.items():
            for name in contents:
                if name in wanted and self.types[name] not in _FLOATS:
                    raise UserError(
                        f"{path}: {name} is stored as {self.types[name]}, as in a quantized checkpoint; "
                        f"allowed are weights in {', '.join(_FLOATS)}"
                    )

    def stream(self, wanted: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the `wanted` tensors (None: all) with their names, from one file after another.

        Raises:
            UserError: a tensor contains a number that is not finite, when the tensor is reached.
        """
        for path, contents in self.files.items():
            names = [name for name in contents if wanted is None or name in wanted]
            if path.suffix == ".safetensors":
                with _opened(path) as file:
                    for name in names:
                        yield name, _finite(path, name, file.get_tensor(name))
            elif names:
                loaded = _unpickled(path)
                for name in names:
                    yield name, _finite(path, name, loaded[name])


def check_shapes(
    where: Path | str, found: Mapping[str, Shape], needed: Mapping[str, Shape], theirs: Callable[[str], str]
) -> None:
    """Compare the tensors of a checkpoint with those of the model that its config describes, by our names.

    A tensor without a name of ours keeps its own. `where` names the checkpoint in the message; `theirs` makes the
    checkpoint's name of ours.

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
    """Return the first names of many, for a message."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files that contain the weights, and the names of tensors that an index says they contain."""
    for ending, stem in (("safetensors", "model"), ("bin", "pytorch_model")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            return _indexed(index)
        if files := sorted(folder.glob(f"{stem}*.{ending}")):
            return files, []
    raise UserError(f"{folder}: contains no model*.safetensors and no pytorch_model*.bin")


def _indexed(index: Path) -> tuple[list[Path], list[str]]:
    weight_map = read_json(index).get("weight_map")
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


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor contains neither NaN nor infinity, computed in one pass and without a copy of it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))  # with a NaN, minimum and maximum are NaN


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype in _DTYPES.values() and not is_finite(tensor):
        raise UserError(f"{path}: {name} contains NaN or infinity; allowed are finite numbers")
    return tensor


def _headers(path: Path) -> dict[str, tuple[Shape, str]]:
    """Return the shape and type of every tensor of a file."""
    if path.suffix != ".safetensors":
        loaded = _unpickled(path)
        return {name: (list(each.shape), str(each.dtype).removeprefix("torch.")) for name, each in loaded.items()}
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        return {name: (part.get_shape(), _type_of(part.get_dtype())) for name, part in slices.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with open_tensors(path) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} {_mistaken(path) or f'is no safetensors file ({error})'}") from error


def _type_of(stored: str) -> str:
    """Name of a safetensors type, as torch names it where it is a plain floating type."""
    return str(_DTYPES[stored]).removeprefix("torch.") if stored in _DTYPES else stored


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a torch file; tensors in the usual format stay on disk until they are read."""
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch before 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(f"{path} {_mistaken(path) or _refused(error)}") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path}: contains something else than tensors by name")
    if unnamed := [key for key in loaded if not isinstance(key, str)]:
        raise UserError(f"{path}: contains a tensor under {unnamed[0]!r}; allowed are names")
    return loaded


def _refused(error: Exception) -> str:
    """Say why torch does not load a file, without torch's advice to run the code in it."""
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f", which asks for {asked[1]}" if asked else ""
        return f"contains something else than tensors{what}; nothing of it is run: ask its maker for safetensors"
    return "is no file of torch, or is damaged: fetch it again"


def _mistaken(path: Path) -> str | None:
    """Say what a file contains instead of weights when a download went wrong, judged by its beginning."""
    try:
        with open(path, "rb") as file:
            start = file.read(200)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file itself, which `git lfs pull` fetches"
    if start.lstrip()[:1] == b"<":
        return "is a web page and no weights: fetch the file itself"
    text = start.decode("ascii", errors="replace")
    if text and all(each.isprintable() or each.isspace() for each in text) and "\ufffd" not in text:
        return f"is a text and no weights ({' '.join(text.split())[:60]!r}): fetch the file itself"
    return None if start else "is empty"


@dataclass(frozen=True)
class Layout:
    """Mapping between a checkpoint's tensor names and ours, by pairs of prefixes: theirs, ours.

    Of two that begin alike, the longer comes first.
    """

    pairs: tuple[tuple[str, str], ...]

    def ours(self, name: str) -> str:
        """Convert their name to ours; a name without one of ours gets a mark that no name of ours has."""
        for theirs, ours in self.pairs:
            if name.startswith(theirs):
                return ours + name[len(theirs) :]
        return f"?{name}"

    def theirs(self, name: str) -> str:
        """Convert our name to theirs."""
        for theirs, ours in self.pairs:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return name.removeprefix("?")
