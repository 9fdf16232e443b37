"""Which functions of the package read or write files, found in its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import llava_mini

PACKAGE = Path(llava_mini.__file__).parent
# Calls that open a file, whatever they are called on.
_ALWAYS = {
    "open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "write_json", "read_json", "touch",
    "memmap", "fromfile", "tofile", "load_file", "save_file", "safe_open", "save_tensors", "load_tensors",
    "open_tensors", "save_pretrained", "from_pretrained", "savefig", "savez", "savez_compressed", "to_json_file",
    "from_json_file", "atomic_path", "new_folder", "whole_lines", "locked", "folder_lock", "shard_lock", "mkstemp",
    "NamedTemporaryFile", "TemporaryFile", "copyfile", "copyfileobj", "copytree", "copy2", "ZipFile", "TarFile",
}  # fmt: skip
# Calls that do so on these modules only.
_OF_MODULES = {"load", "save", "loads", "dump", "connect", "copy", "move", "from_file"}
_MODULES = {"np", "numpy", "torch", "json", "yaml", "pickle", "sqlite3", "shutil", "safetensors"}
_NO_FILE = {"json.loads", "pickle.loads"}


def opening_functions() -> dict[str, list[str]]:
    """`data.index:read_sidecar` of every function that opens a file, with the calls that do."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name, call in _calls(ast.parse(path.read_text()), ()):
            if opens(call):
                found.setdefault(f"{module}:{name}", []).append(ast.unparse(call))
    return found


def _calls(node: ast.AST, within: tuple[str, ...]) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inner = (*within, child.name) if named else within  # type: ignore[attr-defined]
        if isinstance(child, ast.Call):
            yield ".".join(within) or "(module)", child
        yield from _calls(child, inner)


def opens(call: ast.Call) -> bool:
    """Whether a call opens a file, as far as its name tells."""
    if isinstance(call.func, ast.Name):
        return call.func.id in _ALWAYS
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func) in _NO_FILE:
        return False
    of_module = isinstance(call.func.value, ast.Name) and call.func.value.id in _MODULES
    return call.func.attr in _ALWAYS or (of_module and call.func.attr in _OF_MODULES)
