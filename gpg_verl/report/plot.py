"""Learning curves: a run, or several side by side, as one picture. Seeds of one row are drawn as mean and range."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import nan
from pathlib import Path
from statistics import fmean

from gpg_verl.report import ReportError, seeds
from gpg_verl.report.compare import Group
from gpg_verl.report.metrics import (
    ALPHA,
    ENTROPY,
    LEAST_SECONDS,
    LENGTH,
    PASSES,
    REWARD,
    SAVE_SECONDS,
    STAGES,
    TEST_SECONDS,
    TRUNCATED,
    VALID_SHARE,
    Run,
)

Points = dict[int, float]  # step → value
MARKERS = "osD^v<>ph*"
SMOOTH_FROM = 60  # more points than this are drawn as running mean
UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}  # in one hour


def plot_groups(groups: Sequence[Group], path: Path) -> None:
    """Draw reward and held-out accuracy by step and by time, valid share and α, length, entropy, seconds by stage."""
    from matplotlib.figure import Figure  # takes a second to import; the Agg canvas is its default

    figure = Figure(figsize=(12, 16), layout="constrained")
    (reward, reward_time), (accuracy, accuracy_time), (valid, length), (entropy, seconds) = figure.subplots(4, 2)
    alpha, truncated = valid.twinx(), length.twinx()
    alone = len(groups) == 1
    unit = _unit_of_time(groups)
    for i, g in enumerate(groups):
        color = f"C{i % 10}"
        second = "C1" if alone else color  # of the dashed line in a panel with two axes
        _line(reward, g.runs, _metric(REWARD), color=color)
        _line(reward_time, g.runs, _metric(REWARD), unit, color=color)
        _accuracy(accuracy, g.runs, alone, color)
        _accuracy(accuracy_time, g.runs, alone, color, unit)
        _line(valid, g.runs, _metric(VALID_SHARE), color=color)
        _line(alpha, g.runs, _metric(ALPHA), color=second, linestyle="--")
        _line(length, g.runs, _metric(LENGTH), color=color)
        _line(truncated, g.runs, _metric(TRUNCATED), color=second, linestyle="--")
        _line(entropy, g.runs, _metric(*ENTROPY), color=color)
    if alone and len(groups[0].runs) == 1:
        _stages_by_step(seconds, groups[0].runs[0])
    else:
        _stages_by_group(seconds, groups)

    held_out = "Held-out accuracy" if alone else "Held-out accuracy, mean over the data sets"
    time = f"{unit} of training and validation"
    reward.set(title="Training reward by step", ylabel="mean reward")
    reward_time.set(title="Training reward by time", ylabel="mean reward", xlabel=time)
    accuracy.set(title=f"{held_out}, by step", ylabel="share right")
    accuracy_time.set(title=f"{held_out}, by time", ylabel="share right", xlabel=time)
    valid.set(title="Valid share (B − M)/B, and α (dashed)", ylabel="valid share", ylim=(0, 1.05))
    alpha.set(ylabel="α", ylim=(0, 1.05 * max(1.0, alpha.dataLim.ymax) if alpha.has_data() else 1.05))
    length.set(title="Response length, and share at the limit (dashed)", ylabel="tokens, mean")
    truncated.set(ylabel="share at the limit", ylim=(0, 1.05))
    entropy.set(title="Entropy of the policy", ylabel="nats per token")
    for panel, other in {reward: None, accuracy: None, valid: alpha, length: truncated, entropy: None}.items():
        _by_step(panel)
        _finish(panel, other)
    for panel in (reward_time, accuracy_time, seconds):
        _finish(panel)
    if not entropy.has_data():
        entropy.set_xlabel("actor_rollout_ref.actor.calculate_entropy=True logs it")
    _head(figure, groups)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an extension matplotlib does not know
        raise ReportError(
            f"{path}: cannot write the plot ({error}). Name a writable place, ending in .png or .pdf: --plot FILE."
        ) from None


def plot_seeds(groups: Sequence[Group], path: Path) -> None:
    """Training reward and held-out results of several methods by step, by response and by second: the mean where all
    seeds of a method are, and its 95 % interval.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(14, 8), layout="constrained")
    for panels, measure in zip(figure.subplots(2, 3, sharey="row"), seeds.MEASURES, strict=True):
        for panel, (axis, how) in zip(panels, seeds.AXES.items(), strict=True):
            for i, g in enumerate(groups):
                curve = seeds.mean_curve(g.runs, measure, axis)
                x, mean = [x for x, _ in curve], [found.mean for _, found in curve]
                # Seeds' seconds differ, so there are points of each between those of the others.
                marker = "" if axis == "seconds" else MARKERS[i % len(MARKERS)]
                panel.plot(x, mean, color=f"C{i % 10}", marker=marker, markersize=4)
                if len(g.runs) > 1:
                    half = [found.half or 0.0 for _, found in curve]
                    low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
                    panel.fill_between(x, low, high, color=f"C{i % 10}", alpha=0.12, linewidth=0)
            panel.set(title=f"{measure}, {how}", xlabel="step" if axis == "step" else f"{axis} of a run so far")
            if axis == "step":
                _by_step(panel)
            panel.grid(alpha=0.3)
            if not any(line.get_xdata().size for line in panel.lines):
                panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", va="center", color="grey")
        panels[0].set_ylabel(measure)
    lines = [
        Line2D([], [], color=f"C{i % 10}", marker=MARKERS[i % len(MARKERS)], label=f"{g.label} ({len(g.runs)} runs)")
        for i, g in enumerate(groups)
    ]
    title = "mean where all runs of a method are; band: 95 % interval over its seeds (Student's t)"
    figure.legend(handles=lines, loc="outside upper center", ncols=3, title=title)
    figure.savefig(path, dpi=100)


def _unit_of_time(groups: Sequence[Group]) -> str:
    longest = max((hours for g in groups for run in g.runs for hours in run.hours().values()), default=0.0)
    return next((unit for unit, per_hour in UNITS.items() if longest * per_hour >= 2), "seconds")


def _head(figure, groups: Sequence[Group]) -> None:
    """The name of the one run, or a legend of the groups."""
    from matplotlib.lines import Line2D

    many_steps = any(len(run.training_steps) > SMOOTH_FROM for g in groups for run in g.runs)
    smoothed = ["running mean"] if many_steps else []
    if len(groups) == 1 and len(groups[0].runs) == 1:
        figure.suptitle(", bold: ".join([groups[0].label, *smoothed]), fontsize="large")
        return
    if any(len(g.runs) > 1 for g in groups):
        smoothed.insert(0, "mean over the seeds that got so far, band: their range")
    lines = [Line2D([], [], color=f"C{i % 10}", label=g.label) for i, g in enumerate(groups)]
    figure.legend(handles=lines, loc="outside upper center", ncols=2, title="; ".join(smoothed))


def _metric(*names: str):
    """Reads a run's values of the first of these metrics that a step has."""

    def points(run: Run) -> Points:
        found = {step: [run.steps[step][n] for n in names if n in run.steps[step]] for step in run.training_steps}
        return {step: values[0] for step, values in found.items() if values}

    return points


def _line(panel, runs: Sequence[Run], read, unit: str | None = None, marker: str = ".", **style) -> None:
    """The mean over the runs at each step, with their range; by time if a unit is given."""
    series = [read(run) for run in runs]
    hours = [run.hours() for run in runs]
    steps = sorted({step for points in series for step in points})
    if unit:
        steps = [step for step in steps if any(step in h for h in hours)]
    if not steps:
        return
    values = [[points[step] for points in series if step in points] for step in steps]
    x = [fmean(h[step] for h in hours if step in h) * UNITS[unit] for step in steps] if unit else steps
    mean, low, high = ([of(v) for v in values] for of in (fmean, min, max))
    if many := len(steps) > SMOOTH_FROM:
        if len(runs) == 1:
            panel.plot(x, mean, alpha=0.25, linewidth=0.8, color=style["color"])
        mean, low, high = (_running_mean(line) for line in (mean, low, high))
    panel.plot(x, mean, marker="" if many else marker, **style)
    if len(runs) > 1:
        panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _running_mean(values: list[float]) -> list[float]:
    reach = len(values) // SMOOTH_FROM + 1
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _accuracy(panel, runs: Sequence[Run], alone: bool, color: str, unit: str | None = None) -> None:
    """Held-out results: each data source of a group by itself, or their mean where groups are compared."""
    sources = list(dict.fromkeys(result.source for run in runs for result in run.held_out))
    if not alone:
        _line(panel, runs, _mean_accuracy, unit, marker="o", color=color)
        return
    for i, (source, marker) in enumerate(zip(sources, cycle(MARKERS), strict=False)):
        if len(runs) > 1 or unit:
            _line(panel, runs, _source_accuracy(source), unit, marker=marker, color=f"C{i % 10}", label=source)
            continue
        results = [result for result in runs[0].held_out if result.source == source]
        panel.errorbar(
            [result.step for result in results],
            [result.value for result in results],
            yerr=[nan if result.error is None else result.error for result in results],
            fmt=f"{marker}-",
            color=f"C{i % 10}",
            capsize=4,
            label=f"{source} ± s.e." if any(result.error is not None for result in results) else source,
        )
    if sources and not unit:
        panel.legend(fontsize="small")


def _source_accuracy(source: str):
    return lambda run: {result.step: result.value for result in run.held_out if result.source == source}


def _mean_accuracy(run: Run) -> Points:
    steps = dict.fromkeys(result.step for result in run.held_out)
    return {step: fmean(result.value for result in run.held_out if result.step == step) for step in steps}


def _columns(run: Run) -> dict[str, list[float | None]]:
    """Stage → seconds of each training step."""
    columns = {stage: run.column(name) for stage, name in (STAGES | PASSES).items()}
    return columns | {"save": run.column(SAVE_SECONDS), "other": run.other_seconds(), "test": run.column(TEST_SECONDS)}


def _stages_by_step(panel, run: Run) -> None:
    """Seconds of each step, stacked: the stages and the rest of the step, then validation on top."""
    steps = run.training_steps
    base = [0.0] * len(steps)
    for i, (stage, column) in enumerate(_columns(run).items()):
        if any((value or 0.0) >= LEAST_SECONDS for value in column):
            top = [below + (value or 0.0) for below, value in zip(base, column, strict=True)]
            edges = [*(step - 0.5 for step in steps), steps[-1] + 0.5]
            panel.stairs(top, edges, baseline=base, fill=True, color=f"C{i}", label=stage)
            base = top
    panel.set(title="Seconds by stage", ylabel="seconds per step")
    _by_step(panel)
    if panel.has_data():
        panel.set_ylim(0, 1.05 * panel.dataLim.ymax)
        panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


def _stages_by_group(panel, groups: Sequence[Group]) -> None:
    """Mean seconds per step of each group, stacked by stage; validation and saving spread over all steps."""
    left = [0.0] * len(groups)
    for i, stage in enumerate((*STAGES, *PASSES, "save", "other", "test")):
        widths = [
            fmean([sum(v or 0.0 for v in _columns(r)[stage]) / max(1, len(r.training_steps)) for r in g.runs])
            for g in groups
        ]
        if max(widths) >= LEAST_SECONDS:
            panel.barh(range(len(groups)), widths, left=left, color=f"C{i}", label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    panel.set(title="Seconds by stage, mean", xlabel="seconds per step")
    panel.set_yticks([])
    panel.invert_yaxis()
    if not any(left):
        return
    panel.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for i, g in enumerate(groups):  # on the bars: beside the axis, long names would take half of the picture
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5}
        panel.text(0.02, i, g.label, transform=panel.get_yaxis_transform(), va="center", fontsize="small", bbox=box)


def _by_step(panel) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _finish(panel, other=None) -> None:
    panel.grid(alpha=0.3)
    if not panel.has_data() and not (other and other.has_data()):
        panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", va="center", color="grey")
        panel.set(xticks=[], yticks=[])
    if other and not other.has_data():
        other.set_visible(False)
