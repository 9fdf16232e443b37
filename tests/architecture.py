"""The picture of the layers in ARCHITECTURE.md, made from the contract that import-linter enforces.

`python tests/architecture.py` writes it; `tests/test_architecture.py` checks that it is written.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
_BEGIN, _END = "<!-- layers: python tests/architecture.py -->\n", "<!-- end of layers -->\n"


def layers() -> list[list[str]]:
    """Return the names of each layer, the top one first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(each for each in contracts if each["type"] == "layers")
    return [[name.strip(" ()") for name in layer.split("|")] for layer in contract["layers"]]


def line_of(name: str) -> str:
    """Return the first sentence of a module's or package's docstring."""
    path = ROOT / "src" / "llava_mini" / name
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    doc = ast.get_docstring(ast.parse(source.read_text())) or ""
    return re.split(r"(?<=[.])\s", " ".join(doc.split("\n\n")[0].split()))[0]


def picture() -> str:
    """Return the block: one row for each package and module, a rule between layers."""
    rows = []
    for number, layer in enumerate(layers(), 1):
        for name in layer:
            shown = f"{name}/" if (ROOT / "src" / "llava_mini" / name).is_dir() else f"{name}.py"
            rows.append(f"| {number} | `{shown}` | {line_of(name).replace('|', chr(92) + '|')} |")
    return "\n".join(["| layer | part | what it is |", "|---|---|---|", *rows]) + "\n"


def page() -> str:
    """Return ARCHITECTURE.md with the block as it has to be."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    return f"{before}{_BEGIN}{picture()}{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(picture())
