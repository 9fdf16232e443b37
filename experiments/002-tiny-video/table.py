"""Tables and figure of study 002, from the folders of its runs.

    python experiments/002-tiny-video/table.py RUNS WORLD

RUNS holds {all,shuffled,one}-s{seed}/predictions_test.npz, WORLD is the tiny world of those runs (the share of the
most frequent answer is read from its test sets). Writes results.json and accuracy_by_kind.png beside this file.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import parse_record
from llava_mini.predictions import Predictions
from llava_mini.sweep.statistics import Answers, Estimate

CONDITIONS = {"all": "all frames", "shuffled": "frames shuffled", "one": "one frame"}
COLORS = {"all": "#0072B2", "shuffled": "#E69F00", "one": "#6B7280"}
HERE = Path(__file__).parent


def kind_of_modality(kind: str) -> str:
    return kind.split("_")[0] if kind.startswith(("clip_", "text_")) else "image"


def majority(world: Path) -> dict[str, float]:
    """For every kind the share of its most frequent answer in the test sets, and for every modality the blind score."""
    answers: dict[str, Counter[str]] = {}
    for name in ("instruct-test", "clip-test", "text-test"):
        shards = ShardSet(world / name)
        for index in range(len(shards)):
            for turn in parse_record(shards.read_record(index)).turns:
                answers.setdefault(turn.kind, Counter())[turn.answer] += 1
    best = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    for modality in ("image", "clip", "text"):
        own = [counts for kind, counts in answers.items() if kind_of_modality(kind) == modality]
        best[modality] = sum(max(counts.values()) for counts in own) / sum(counts.total() for counts in own)
    return best


def main() -> None:
    runs_folder, world = Path(sys.argv[1]), Path(sys.argv[2])
    found = sorted(
        (match[1], int(match[2]), path)
        for path in runs_folder.glob("*/predictions_test.npz")
        if (match := re.fullmatch(r"(\w+)-s(\d+)", path.parent.name))
    )
    runs = [Predictions.load(path) for _, _, path in found]
    seeds = {name: {seed: i for i, (n, seed, _) in enumerate(found) if n == name} for name in CONDITIONS}
    kinds = sorted({str(kind) for run in runs for kind in np.unique(run.kind)})
    groups = {m: {k for k in kinds if kind_of_modality(k) == m} for m in ("image", "clip", "text")}
    groups |= {kind: {kind} for kind in kinds}
    blind = majority(world)
    results = {}
    for group, members in groups.items():
        scores = Answers([run.chosen(np.isin(run.kind, list(members))) for run in runs]).scores("exact_match")
        means = {name: scores.mean(by_seed) for name, by_seed in seeds.items()}
        differences = {name: scores.difference(seeds["all"], seeds[name]) for name in ("shuffled", "one")}
        results[group] = {
            "most_frequent_answer": blind[group],
            **{name: asdict(mean) for name, mean in means.items()},
            **{f"all_less_{name}": asdict(each) for name, each in differences.items() if each},
        }
        cells = [f"{100 * blind[group]:.1f}", *(percent(means[name]) for name in CONDITIONS)]
        cells += [points(each) for each in differences.values() if each]
        print(f"| {group} | " + " | ".join(cells) + " |")
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, [kind for kind in kinds if kind.startswith("clip_")])


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}" + (
        "" if estimate.interval is None else " ({:.1f} to {:.1f})".format(*(100 * end for end in estimate.interval))
    )


def points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f}" + (
        "" if estimate.interval is None else " ({:+.1f} to {:+.1f})".format(*(100 * end for end in estimate.interval))
    )


def draw(results: dict[str, dict[str, Any]], kinds: list[str]) -> None:
    """Accuracy of every kind of question about clips, with the controls."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for number, (name, label) in enumerate(CONDITIONS.items()):
        found = [results[kind][name] for kind in kinds]
        values = np.array([100 * each["value"] for each in found])
        ends = np.array([each["interval"] or (each["value"], each["value"]) for each in found])
        places = np.arange(len(kinds)) + (number - 1) * 0.26
        errors = np.abs(100 * ends.T - values)
        axes.bar(places, values, 0.24, yerr=errors, color=COLORS[name], ecolor="#1F2937", capsize=2, label=label)
    for place, kind in enumerate(kinds):
        blind = 100 * results[kind]["most_frequent_answer"]
        axes.plot([place - 0.42, place + 0.42], [blind, blind], color="#B91C1C", linestyle=":", linewidth=1.5)
    axes.plot([], [], color="#B91C1C", linestyle=":", label="most frequent answer")
    axes.set_xticks(range(len(kinds)), [kind.removeprefix("clip_") for kind in kinds])
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(HERE / "accuracy_by_kind.png", dpi=130)


if __name__ == "__main__":
    main()
