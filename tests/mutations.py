"""Faults put into the code one at a time, and the tests that have to fail: `python tests/mutations.py [name ...]`.

Each is of a kind that a model would train and answer with, only worse: wrong labels, masks, positions, order, resume,
pixels. The code is changed in a copy. tests/MUTATIONS.md is the last result.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("MUTATIONS.md")


@dataclass(frozen=True)
class Mutation:
    """A fault.

    Attributes:
        name: What is wrong.
        path: File in src/llava_mini.
        before: Text that is in the file exactly once.
        after: Text that replaces it.
        tests: Tests that are run.
    """

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


LABELS, ATTENTION = ("tests/data/text/test_labels.py",), ("tests/models/test_attention.py",)
STREAM = ("tests/data/stream/test_stream.py", "tests/data/stream/test_order.py")
PIXELS = ("tests/data/stream/test_pixels.py",)
MODEL = ("tests/models/test_llava_mini.py", "tests/models/interop/test_official.py")
MUTATIONS = (
    Mutation("labels: the question is supervised too", "data/text/labels.py", "labels = np.full_like(ids, IGNORE)",
             "labels = ids.copy()", LABELS),
    Mutation("labels: later turns of a packed sample have the labels of the first", "data/text/labels.py",
             "*(part.labels[prefix:] for part in parts[1:num_turns])",
             "*(parts[0].labels[prefix:] for part in parts[1:num_turns])", LABELS),
    Mutation("labels: a shortened sample keeps one id more than labels say", "data/text/labels.py",
             "ids, labels = encoded.ids[:keep], encoded.labels[:keep]",
             "ids, labels = encoded.ids[:keep], np.roll(encoded.labels, 1)[:keep]", LABELS),
    Mutation("loss: the mean is over the batch, not over the supervised tokens", "models/loss.py",
             "    return loss / _divisor(num_items, targets_S)\n\n\ndef next_token_loss_of_hidden",
             "    return loss / len(labels_BT)\n\n\ndef next_token_loss_of_hidden", ("tests/models/test_loss.py",)),
    Mutation("mask: a token sees the next one", "models/attention.py", "index_L[None, :] <= index_L[:, None]",
             "index_L[None, :] <= index_L[:, None] + 1", ATTENTION),
    Mutation("mask: independent turns see one another", "models/attention.py", "((key == 0) | (key == query))",
             "((key == 0) | (key <= query))", ATTENTION),
    Mutation("positions: padding counts", "models/attention.py", "        return (visible.cumsum(1) - 1).clamp(min=0)",
             "        return torch.ones_like(visible).cumsum(1) - 1", (*ATTENTION, *MODEL)),
    Mutation("pre-fusion: fused text is the sum over frames, not the mean", "models/fused_frames.py",
             "(self._sum_BSD / frames_B11)", "(self._sum_BSD / 1)", MODEL),
    Mutation("pre-fusion: frames are fused with the first sample's text", "models/fused_frames.py",
             "        owner_F = self._owner_F[rows_F]\n        turn_ids_BS",
             "        owner_F = 0 * self._owner_F[rows_F]\n        turn_ids_BS", MODEL),
    Mutation("splice: tokens of the frames in another order", "models/fused_frames.py",
             "torch.argsort(torch.cat(self._frame_of_token), stable=True)",
             "torch.argsort(torch.cat(self._frame_of_token), stable=True).flip(0)", MODEL),
    Mutation("HD: crops put together column by column", "models/vision_tower.py", ".permute(0, 1, 3, 2, 4, 5)",
             ".permute(0, 2, 3, 1, 4, 5)", ("tests/models/test_vision_tower.py", *MODEL)),
    Mutation("compressor: queries without positions", "models/compressors/query.py",
             "self.norm_query(self.query) + self.position", "self.norm_query(self.query)",
             ("tests/models/compressors", "tests/models/interop/test_official.py")),
    Mutation("order: two ranks read the same samples", "data/stream/stream.py",
             "number * self.world_size + self.rank", "number * self.world_size", STREAM),
    Mutation("pixels: red and blue exchanged", "data/stream/pixels.py",
             "torch.from_numpy(picture)[None].permute(0, 3, 1, 2)",
             "torch.from_numpy(picture)[None].permute(0, 3, 1, 2).flip(1)", PIXELS),
    Mutation("pixels: the left edge instead of the middle", "data/stream/pixels.py",
             "(columns - self.size) // 2", "0", PIXELS),
    Mutation("pixels: normalized by the wrong color's mean", "data/stream/pixels.py",
             "pixels.to(torch.float32).sub_(mean_C11)", "pixels.to(torch.float32).sub_(mean_C11.flip(0))",
             (*PIXELS, "tests/data/stream/test_datamodule.py")),
    Mutation("resume: a step's batches are read again", "data/stream/callbacks.py",
             "if batch.position % self.global_batch == 0:", "if batch.position % self.global_batch == 1:",
             ("tests/data/stream/test_position.py",)),
    Mutation("accumulation: batches weigh the same whatever their answers", "stages/accumulation.py",
             "scale_gradients(optimizer, before / self.tokens)", "scale_gradients(optimizer, 0.5)",
             ("tests/stages/test_accumulation.py",)),
    Mutation("score: an answer counts as right with one wrong word", "stages/metrics.py",
             "float(right == words)", "float(right >= words - 1)", ("tests/stages/test_metrics.py",)),
    Mutation("identity: a run with another seed is the same run", "run/identity.py",
             'UNHASHED = ("run_dir",', 'UNHASHED = ("seed", "run_dir",',
             ("tests/sweep/test_grid.py", "tests/run/test_folder.py")),
)  # fmt: skip


def try_one(mutation: Mutation) -> tuple[str, float]:
    """Run a fault's tests on a copy of the code that contains it.

    Returns:
        The test that caught it, or "" if all passed; and the seconds that it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("conf", "checkpoints"):
            (Path(folder) / name).symlink_to(ROOT / name)
        path = Path(folder) / "src" / "llava_mini" / mutation.path
        text = path.read_text()
        if text.count(mutation.before) < 1:
            raise SystemExit(f"{mutation.name}: {mutation.path} does not contain {mutation.before!r}")
        path.write_text(text.replace(mutation.before, mutation.after))
        environment = {**os.environ, "PYTHONPATH": str(Path(folder) / "src"), "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutation.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    named = [
        line.split(" - ")[0].split() for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))
    ]
    return (named[0][1] if done.returncode else ""), time.monotonic() - start


def main(names: list[str]) -> int:
    """Try the faults whose name contains one of `names`, or all; write the page if all were tried."""
    chosen = [each for each in MUTATIONS if not names or any(name in each.name for name in names)]
    rows = []
    for mutation in chosen:
        caught, seconds = try_one(mutation)
        print(f"{'caught' if caught else 'NOT CAUGHT'} in {seconds:.0f} s: {mutation.name}: {caught}", flush=True)
        rows.append(f"| {mutation.name} | `{mutation.path}` | {f'`{caught}`' if caught else '**none**'} |")
    if not names:
        head = "# Faults that were tried\n\nEach put into the code alone by `python tests/mutations.py`."
        PAGE.write_text("\n".join([head, "", "| fault | file | caught by |", "|---|---|---|", *rows]) + "\n")
    return int(any("**none**" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
