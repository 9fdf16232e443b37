"""The tables list every function that opens a file, so that a new one cannot be forgotten."""

from __future__ import annotations

from tests.faults.opening import opening_functions
from tests.faults.readers import OTHER_READERS, READERS
from tests.faults.writers import OTHER_WRITERS, WRITERS

# Measurements of this package's own, of which no file is read again.
NO_RUNS = ("bench.", "gpu_bench.", "gpu_check.")


def test_every_function_that_opens_a_file_is_listed() -> None:
    tested = {name for entry in (*READERS, *WRITERS) for name in entry.functions}
    others = OTHER_READERS.keys() | OTHER_WRITERS.keys()
    opening = {name: calls for name, calls in opening_functions().items() if not name.startswith(NO_RUNS)}
    forgotten = {name: calls for name, calls in opening.items() if name not in tested | others}
    assert not forgotten, "add them to tests/faults/readers.py or writers.py, or say there why not"
    assert len(opening) > 100
    gone = sorted((tested | others) - opening.keys())
    assert not gone, "they open no file any more"
