"""Benchmark of the data path: trials in interleaved rounds, with ratios taken within each round.

A round runs every loader once, so other load on the machine affects all of them alike. The report gives medians over
the rounds, with the smallest and the largest value.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llava_mini.bench.large_set import Opening, make_large_set, open_large_set
from llava_mini.bench.loaders import (
    SHUFFLE_BUFFER,
    Loader,
    own,
    pixel_difference,
    plain_webdataset,
    usual,
    usual_with_our_labels,
)
from llava_mini.bench.made_data import MadeData, make_data
from llava_mini.bench.process_memory import fresh
from llava_mini.bench.stopwatch import Spread
from llava_mini.bench.trials import Build, Cost, Memory, build, bytes_of_records, cost, memory, verification

log = logging.getLogger("llava_mini")

OWN, OWN_SMALL = "ours, originals", "ours, 336-pixel shards"
USUAL, USUAL_SMALL = "usual, originals", "usual, 336-pixel files"
USUAL_OUR_LABELS = "usual with our labels, originals"
WDS, WDS_SHUFFLED = "WebDataset, stored order", f"WebDataset, buffer of {SHUFFLE_BUFFER}"
LARGE_SET = 3_000_000  # samples
WORKERS = 2  # processes that open the large set at the same time

_COMPARED = 100  # images whose pixels are compared


@dataclass(frozen=True)
class Findings:
    """Results of all measurements.

    Attributes:
        samples: Number of generated samples.
        costs: Time per sample of every loader, one value per round.
        memories: Memory of every loader.
        record_bytes: Bytes of a record in the usual loader's list.
        openings: Cost of opening the large set, for each worker of each round.
        builds: Cost of `data build`, one value per round.
        verify_ms: CPU milliseconds to verify an image, one value per round.
        differences: Largest and mean difference of our pixels from the usual loader's in 1/255, for each of our
            loaders.
    """

    samples: int
    costs: Mapping[str, Sequence[Cost]]
    memories: Mapping[str, Memory]
    record_bytes: float
    openings: Sequence[Opening]
    builds: Sequence[Build]
    verify_ms: Sequence[float]
    differences: Mapping[str, tuple[float, float]]

    def ratio(self, other: str, ours: str) -> Spread:
        """Return the CPU time of another loader divided by that of ours, over the rounds."""
        pairs = zip(self.costs[other], self.costs[ours], strict=True)
        return Spread.of([theirs.cpu / mine.cpu for theirs, mine in pairs])

    def loading(self, loader: str) -> float:
        """Return the MiB that a loader takes beyond what its process had before."""
        return self.memories[loader].peak - self.memories[loader].before


def run(work: Path, samples: int, rounds: int) -> Findings:
    """Generate the data in `work` and measure everything. It needs about 600 KB of disk per sample."""
    log.info("making %d samples", samples)
    data = make_data(work / "made", samples)
    make_large_set(work / "large", LARGE_SET)
    loaders = _loaders(data)
    costs: dict[str, list[Cost]] = {name: [] for name in loaders}
    openings: list[Opening] = []
    builds: list[Build] = []
    verify_ms: list[float] = []
    for number in range(1, rounds + 1):
        for name, loader in loaders.items():
            costs[name].append(fresh(cost, loader, data, samples))
        openings += open_large_set(work / "large", WORKERS)
        builds.append(build(data, work / "built"))
        shutil.rmtree(work / "built")
        verify_ms.append(fresh(verification, data))
        found = ", ".join(f"{name} {each[-1].cpu:.2f}" for name, each in costs.items())
        log.info("round %d of %d, CPU-ms a sample: %s; build %.2f", number, rounds, found, builds[-1].cpu)
    return Findings(
        samples,
        costs,
        {name: fresh(memory, loader, data, samples) for name, loader in loaders.items()},
        fresh(bytes_of_records, data),
        openings,
        builds,
        verify_ms,
        {
            name: pixel_difference(data, shards, min(samples, _COMPARED))
            for name, shards in ((OWN, data.shards), (OWN_SMALL, data.small_shards))
        },
    )


def _loaders(data: MadeData) -> dict[str, Loader]:
    return {
        USUAL: partial(usual, data.images),
        OWN: partial(own, data.shards),
        USUAL_OUR_LABELS: partial(usual_with_our_labels, data.images),
        USUAL_SMALL: partial(usual, data.small_images),
        OWN_SMALL: partial(own, data.small_shards),
        WDS_SHUFFLED: partial(plain_webdataset, SHUFFLE_BUFFER),
        WDS: partial(plain_webdataset, 0),
    }
