"""Write clips as mp4 files: H.264, four frames per second and per state, sharp enough for shapes of a dozen pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment] # `write_mp4` reports it

RATE = 4  # frames per second; one state lasts one second
_OPTIONS = {"crf": "8", "preset": "veryfast", "tune": "animation"}


def write_mp4(path: Path, states: NDArray[np.uint8]) -> None:
    """Write states [T, H, W, 3] as a video of T seconds; the same states give the same bytes.

    Colors have full resolution (4:4:4), because at half the resolution, shapes of a dozen pixels would be blurred.

    Raises:
        UserError: PyAV is not installed.
    """
    if av is None:
        raise UserError("the toy world's clips need PyAV: pip install 'llava-mini-lab[data]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=_OPTIONS)
        stream.height, stream.width = states.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.thread_count = 1
        for state in np.repeat(states, RATE, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(state, format="rgb24")))
        container.mux(stream.encode())
