"""The tables list every function that opens a file, so that a new one cannot be forgotten."""

from __future__ import annotations

import ast

import pytest
from tests.faults.opening import opening_functions, opens
from tests.faults.readers import OTHER_READERS, READERS
from tests.faults.writers import OTHER_WRITERS, WRITERS

# Measurements of this package's own, of which no file is read again.
NO_RUNS = ("bench.",)


def test_every_function_that_opens_a_file_is_listed() -> None:
    tested = {name for reader in READERS for name in reader.functions}
    tested |= {name for writer in WRITERS for name in writer.functions}
    others = OTHER_READERS.keys() | OTHER_WRITERS.keys()
    opening = {name: calls for name, calls in opening_functions().items() if not name.startswith(NO_RUNS)}
    forgotten = {name: calls for name, calls in opening.items() if name not in tested | others}
    assert not forgotten, "add them to tests/faults/readers.py or writers.py, or say there why not"
    assert len(opening) > 100
    gone = sorted((tested | others) - opening.keys())
    assert not gone, "they open no file any more"


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("open(path)", True), ("path.open('rb')", True), ("path.read_text()", True), ("np.load(path)", True),
        ("torch.save(state, path)", True), ("json.load(file)", True), ("save_file(tensors, path)", True),
        ("figure.savefig(path)", True), ("AutoModel.from_pretrained(path)", True), ("read_json(path)", True),
        ("sqlite3.connect(path)", True), ("shutil.copyfile(a, b)", True),
        ("json.loads(text)", False), ("image.load()", False), ("text.replace('a', 'b')", False),
    ],
)  # fmt: skip
def test_the_usual_calls_are_known(call: str, found: bool) -> None:
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call) and opens(node) is found
