"""The table of `docs/transformers.md` is true: every row names tests, every test that it names is there."""

import ast
import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "transformers.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
# Files that are about transformers alone: each of their tests is in the table too.
WHOLE = (
    "test_common_checks.py", "test_generation_options.py", "test_peft.py", "test_quantized_and_placed.py",
    "test_trl.py",
)  # fmt: skip


def rows() -> list[list[str]]:
    """Cells of every row, without the header and the headings between."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells[1:] if not row[0].startswith("**")]


def names_in(name: str) -> set[str]:
    body = ast.parse((Path(__file__).parent / name).read_text()).body
    return {each.name for each in body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")}


def test_every_row_names_tests_that_are_there() -> None:
    assert len(rows()) > 50
    for feature, state, tests in rows():
        assert state.startswith(("works", "refused", "not applicable")), feature
        named = NAMED.findall(tests)
        assert named, f"{feature}: no test"
        assert NAMED.sub("", tests).strip(" ,") == "", f"{feature}: what is no name of a test"
        for file, test in named:
            assert test in names_in(file), f"{feature}: {file}::{test}"


def test_every_test_of_these_files_is_in_the_table() -> None:
    named = {pair for *_, tests in rows() for pair in NAMED.findall(tests)}
    for file in WHOLE:
        assert {(file, test) for test in names_in(file)} <= named
