"""ARCHITECTURE.md shows the layers that are enforced."""

from tests.architecture import PAGE, ROOT, layers, line_of, page


def test_the_picture_is_that_of_the_enforced_contract() -> None:
    assert PAGE.read_text() == page(), "run: python tests/architecture.py"


def test_every_part_is_in_it_and_says_what_it_is() -> None:
    names = [name for layer in layers() for name in layer]
    package = ROOT / "src" / "llava_mini"
    parts = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set(names)
    assert [name for name in names if len(line_of(name)) < 20] == []
