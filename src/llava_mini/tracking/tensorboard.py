"""TensorBoard as the service that runs are reported to: event files, which `tensorboard --logdir tensorboard` shows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llava_mini.errors import refused
from llava_mini.tracking.service import Service
from llava_mini.tracking.spool import Line, Origin

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DEFAULT_FOLDER = "tensorboard"


class TensorBoard(Service):
    """Event files in a folder for each run: EXPERIMENT/NAME, or EXPERIMENT/SWEEP/NAME for a run of a sweep.

    Metrics are scalars; params and tags are one table of text. Data sets, files and MLflow's views have no place there.
    """

    name: ClassVar[str] = "TensorBoard"

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise refused("tracker", "tensorboard", "pip install tensorboard; or tracking.enabled=false")
        self._writers: dict[str, SummaryWriter] = {}

    def address(self, uri: str | None) -> str:
        """Return the folder as an absolute path; a `~` is expanded."""
        return str(Path(uri or DEFAULT_FOLDER).expanduser().absolute())

    def create_run(self, origin: Origin) -> str:
        """Make the run's folder and return its path."""
        above = Path(origin.parent_run_id) if origin.parent_run_id else Path(origin.uri, origin.experiment)
        folder = above / origin.name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def send(self, folder: Path, origin: Origin, lines: list[Line]) -> None:
        """Write scalars and text. A point that is written twice is drawn at the same place."""
        run = str(origin.run_id)
        if run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[run] = SummaryWriter(run)
        writer = self._writers[run]
        for line in lines:
            seconds = line.time_ms / 1000
            if line.kind == "metrics":
                for key, value in line.values.items():
                    writer.add_scalar(key, value, line.step, seconds)
            elif line.kind in ("params", "tags"):
                cells = {key: str(value).replace("|", r"\|") for key, value in line.values.items()}
                rows = "\n".join(f"| {key} | {value} |" for key, value in cells.items())
                writer.add_text(line.kind, f"| key | value |\n|---|---|\n{rows}", line.step, seconds)
        writer.flush()
