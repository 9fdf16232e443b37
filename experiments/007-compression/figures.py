"""Tables and figures of study 007 from the folders of its sweeps.

    python experiments/007-compression/figures.py SWEEP [LONGER ...]

SWEEP is the grid, finished or not: what has no finished run yet is left out, and tables say how many seeds there are.
LONGER are sweeps of the same configurations with more steps. Writes beside it: tables.md (word accuracy by kind, and
differences), tokens.png (accuracy against tokens, with and without pre-fusion), layers.png (accuracy against N_fusion),
budgets.png and budgets.md (accuracy against steps), spread.json (how far seeds lie apart).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from llava_mini.sweep.analysis import Analysis, analyse
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.statistics import Estimate

HERE = Path(__file__).parent
GROUPS = {"dense": "dense kinds (7 to 32 words)", "one_word": "one-word kinds"}
COLORS = {"query": "#1D4ED8", "avg_pool": "#C2410C", "zero": "#6B7280", "none": "#111827"}
NAMES = {"query": "query", "avg_pool": "average pooling", "zero": "no token (zero)", "none": "all patches (none)"}


def main(arguments: Sequence[str]) -> None:
    grid, *longer = [analyse(Path(folder)) for folder in arguments]
    (HERE / "tables.md").write_text(by_kind(grid) + "\n" + differences(grid))
    (HERE / "spread.json").write_text(json.dumps(spread(grid), indent=1) + "\n")
    against_tokens(grid)
    against_layers(grid)
    if longer:
        budgets([grid, *longer])


def percent(estimate: Estimate) -> str:
    """`41.2 (39.0 to 43.4)`."""
    if estimate.interval is None:
        return f"{100 * estimate.value:.1f}"
    low, high = estimate.interval
    return f"{100 * estimate.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def label(c: Configuration) -> str:
    """`query | 2 | 4 | 4`: compressor, C, tokens and N_fusion as cells of a table."""
    return f"{NAMES[c.compressor]} | {c.C or ''} | {c.tokens} | {c.n_fusion}"


def ordered(analysis: Analysis) -> list[Configuration]:
    """By pre-fusion layers, then compressor, then tokens."""
    return sorted(analysis.configurations, key=lambda c: (c.n_fusion, c.compressor, c.tokens))


def by_kind(analysis: Analysis) -> str:
    """Word accuracy of each group with intervals, of each kind without, and whether runs had converged."""
    heads = ["compressor | C | tokens | N_fusion", "seeds", *GROUPS.values(), *analysis.kinds, "converged"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 3)]
    for c in ordered(analysis):
        cells = [label(c), str(len(c.columns)), *(percent(c.scores[group].mean) for group in GROUPS)]
        cells += [f"{100 * c.by_kind[kind].value:.0f}" for kind in analysis.kinds]
        lines.append(f"| {' | '.join([*cells, 'yes' if c.training.converged else c.training.mark()])} |")
    return "\n".join(lines) + "\n"


def differences(analysis: Analysis) -> str:
    """All single changes in points, with intervals; bold where clear after Holm's correction."""
    heads = ["change", "at", *GROUPS.values()]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for change in analysis.changes:
        cells = [f"{change.key}: {change.before} to {change.after}", change.at]
        for group in GROUPS:
            found = change.differences.get(group)
            if found is None or found.interval is None:
                cells.append("")
                continue
            text = f"{100 * found.value:+.1f} ({100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f})"
            cells.append(f"**{text}**" if found.clear else text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Standard deviation over seeds of each configuration, in points; of all pooled; and what follows for one seed.

    Two runs of configurations that are equally good, and as unstable as the least stable one, differ by less than
    `limit` 95 times of 100: 1.96 times the deviation of a difference. A comparison with one seed cannot be sure of what
    it shows below that (`llava_mini.sweep.seed_spread`).
    """
    found: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        deviations = {
            c.label: 100 * float(np.std(list(c.scores[group].by_seed.values()), ddof=1))
            for c in analysis.configurations
            if len(c.scores[group].by_seed) > 2
        }
        pooled = float(np.sqrt(np.mean(np.square(list(deviations.values())))))
        limit = 1.96 * 2**0.5 * max(deviations.values())
        deviations = {name: round(value, 3) for name, value in deviations.items()}
        found[group] = {**deviations, "pooled": pooled, "limit": limit}
    return found


def chosen(analysis: Analysis, compressor: str, layers: int | None = None) -> list[Configuration]:
    """Configurations of a compressor, by tokens; of one number of pre-fusion layers where it is given."""
    return sorted(
        (c for c in analysis.configurations if c.compressor == compressor and layers in (None, c.n_fusion)),
        key=lambda c: (c.n_fusion, c.tokens),
    )


def place(tokens: int) -> float:
    """Where a number of tokens stands: the logarithm, with 0 one step before 1."""
    return -1.0 if tokens == 0 else float(np.log2(tokens) / 2)


def curve(axes: Axes, points: Sequence[tuple[float, Configuration]], group: str, style: str, name: str) -> None:
    """Means with intervals, hollow where runs had not converged."""
    if not points:
        return
    color = COLORS[points[0][1].compressor]
    values = [100 * c.scores[group].mean.value for _, c in points]
    axes.plot([x for x, _ in points], values, style, color=color, linewidth=1.6, label=name)
    for (x, c), value in zip(points, values, strict=True):
        low, high = c.scores[group].mean.interval or (value / 100, value / 100)
        face = color if c.training.converged else "white"
        error = [[value - 100 * low], [100 * high - value]]
        axes.errorbar(x, value, error, fmt="o", color=color, markerfacecolor=face, markersize=5, capsize=3)


def panels(title: str) -> tuple[plt.Figure, list[Axes]]:
    """A figure with a panel for each group of kinds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
    for panel, name in zip(axes, GROUPS.values(), strict=True):
        panel.set_title(name, fontsize=10)
        panel.set_ylim(0, 100)
        panel.grid(axis="y", color="#E5E7EB", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("word accuracy on test, %")
    figure.suptitle(title, fontsize=11)
    return figure, list(axes)


def finish(figure: plt.Figure, axes: Sequence[Axes], name: str) -> None:
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(HERE / name, dpi=130)
    plt.close(figure)


def against_tokens(analysis: Analysis) -> None:
    """Accuracy against the tokens that reach the language model, with four pre-fusion layers and without."""
    figure, axes = panels("What vision tokens bring, with pre-fusion (4 layers) and without; hollow: still improving")
    for panel, group in zip(axes, GROUPS, strict=True):
        [reference] = chosen(analysis, "none")
        value = 100 * reference.scores[group].mean.value
        panel.axhline(value, color=COLORS["none"], linewidth=1, linestyle=":", label=NAMES["none"])
        for compressor in ("query", "avg_pool"):
            for layers, style in ((4, "-"), (0, "--")):
                points = [(place(c.tokens), c) for c in chosen(analysis, compressor, layers)]
                curve(panel, points, group, style, f"{NAMES[compressor]}, N_fusion={layers}")
        for layers, style in ((4, "-"), (0, "--")):
            points = [(-1.0, c) for c in chosen(analysis, "zero", layers)]
            curve(panel, points, group, style, "")
            for x, c in points:
                beside = (x + 0.12, 100 * c.scores[group].mean.value)
                panel.annotate(f"no token,\nN={layers}", beside, fontsize=8, color=COLORS["zero"], va="center")
        panel.set_xticks([-1, 0, 1, 2, 3], ["0", "1", "4", "16", "64"])
        panel.set_xlabel("vision tokens")
    finish(figure, axes, "tokens.png")


def against_layers(analysis: Analysis) -> None:
    """Accuracy of queries against the number of pre-fusion layers, for each C and without tokens."""
    figure, axes = panels("What pre-fusion layers bring (query compressor); hollow: still improving")
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, 5))
    for panel, group in zip(axes, GROUPS, strict=True):
        for shade, tokens in zip(shades, (0, 1, 4, 16, 64), strict=True):
            found = [c for c in [*chosen(analysis, "query"), *chosen(analysis, "zero")] if c.tokens == tokens]
            if not found:
                continue
            places = [c.n_fusion for c in found]
            estimates = [c.scores[group].mean for c in found]
            values = np.array([100 * estimate.value for estimate in estimates])
            intervals = np.array([estimate.interval or (estimate.value, estimate.value) for estimate in estimates])
            error = np.abs(100 * intervals.T - values)
            name = "no token (zero)" if tokens == 0 else f"{tokens} token{'s' * (tokens > 1)}"
            panel.errorbar(places, values, error, fmt="o-", color=shade, capsize=3, markersize=4, label=name)
            hollow = [i for i, c in enumerate(found) if not c.training.converged]
            still = {"color": shade, "markerfacecolor": "white", "markersize": 5, "zorder": 3}
            panel.plot(np.array(places)[hollow], values[hollow], "o", **still)
        panel.set_xticks([0, 1, 2, 4])
        panel.set_xlabel("N_fusion")
    finish(figure, axes, "layers.png")


def budgets(analyses: Sequence[Analysis]) -> None:
    """Accuracy of the configurations that any longer sweep has, against the steps of their runs."""
    longer = set.union(*({_key(c) for c in analysis.configurations} for analysis in analyses[1:]))
    first = [c for c in ordered(analyses[0]) if _key(c) in longer]
    steps = [analysis.configurations[0].training.steps[0] for analysis in analyses]
    heads = ["compressor | C | tokens | N_fusion", *(f"{n} steps, {g}" for n in steps for g in ("dense", "one word"))]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 3)]
    figure, axes = panels("Where longer training ends; hollow: still improving")
    shades = dict(zip((0, 1, 4, 16, 64), plt.get_cmap("viridis")(np.linspace(0.85, 0.1, 5)), strict=True))
    for c in first:
        same = [next((o for o in a.configurations if _key(o) == _key(c)), None) for a in analyses]
        cells = [
            "" if o is None else f"{percent(o.scores[g].mean)}{'' if o.training.converged else ' *'}"
            for o in same
            for g in GROUPS
        ]
        lines.append(f"| {label(c)} | {' | '.join(cells)} |")
        if c.compressor == "avg_pool":
            continue
        style = "-" if c.n_fusion else "--"
        shade = COLORS["none"] if c.reference else shades[c.tokens]
        run = [(np.log2(n), o) for n, o in zip(steps, same, strict=True) if o is not None]
        for panel, group in zip(axes, GROUPS, strict=True):
            places, values = [x for x, _ in run], [100 * o.scores[group].mean.value for _, o in run]
            panel.plot(places, values, f"o{style}", color=shade, markersize=4, label=_short(c))
            hollow = [i for i, (_, o) in enumerate(run) if not o.training.converged]
            still = {"color": shade, "markerfacecolor": "white", "linestyle": "none", "marker": "o"}
            panel.plot([places[i] for i in hollow], [values[i] for i in hollow], **still)
    for panel in axes:
        panel.set_xticks(np.log2(steps), [str(n) for n in steps])
        panel.set_xlabel("steps")
    lines.append("\n`*` still improving, or not shown to have converged.\n")
    (HERE / "budgets.md").write_text("\n".join(lines))
    finish(figure, axes, "budgets.png")


def _key(c: Configuration) -> tuple[str, int | None, int]:
    return c.compressor, c.C, c.n_fusion


def _short(c: Configuration) -> str:
    parts: Iterable[str] = [NAMES[c.compressor] if c.C is None else f"query C={c.C}"]
    return ", ".join([*parts, f"N={c.n_fusion}"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("needed is the folder of the grid's sweep, and of sweeps with more steps", file=sys.stderr)
        raise SystemExit(2)
    main(sys.argv[1:])
