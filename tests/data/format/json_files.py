"""Changes of the JSON files of a shard set, one value at a time."""

import json
from pathlib import Path


def put(path: Path, places: list[str | int], value: object) -> None:
    """Write `value` at the end of a path of keys and numbers through a JSON file; ... stands for removing it."""
    content = inner = json.loads(path.read_text())
    for place in places[:-1]:
        inner = inner[place]
    if value is ...:
        del inner[places[-1]]
    else:
        inner[places[-1]] = value
    path.write_text(json.dumps(content))
