"""A run, or several side by side, as one picture."""

from collections.abc import Sequence
from itertools import cycle
from math import nan
from pathlib import Path

from gpg_verl.report.metrics import (
    ALPHA,
    LENGTH,
    REWARD,
    SAVE_SECONDS,
    STAGES,
    STEP_SECONDS,
    TEST_SECONDS,
    VALID_SHARE,
    ReportError,
    Run,
)


def plot_runs(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    """Draw reward, valid share and α, response length and seconds (by stage, if there is one run)."""
    from matplotlib.figure import Figure  # takes a second to import; the Agg canvas is its default
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 8), layout="constrained")
    (reward, valid), (length, seconds) = figure.subplots(2, 2)
    alpha = valid.twinx()
    alone = len(runs) == 1
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = f"C{i}"
        _line(reward, run, REWARD, color=color, label="training reward" if alone else name)
        _points(reward, run, color="black" if alone else color, labelled=alone)
        _line(valid, run, VALID_SHARE, color=color)
        _line(alpha, run, ALPHA, color="C1" if alone else color, linestyle="--")
        _line(length, run, LENGTH, color=color)
        if alone:
            _stages(seconds, run)
        else:
            _line(seconds, run, STEP_SECONDS, color=color)

    figure.suptitle(", ".join(names))
    reward.set(title="Training reward, held-out accuracy ± s.e. (points)", ylabel="mean")
    valid.set(title="Valid share (B − M)/B and α (dashed)", ylabel="valid share", ylim=(0, 1.05))
    alpha.set(ylabel="α", ylim=(0, 1.05 * max(1.0, alpha.dataLim.ymax) if alpha.has_data() else 1.05))
    length.set(title="Response length", ylabel="tokens, mean")
    seconds.set(title="Seconds by stage" if alone else "Seconds per step", ylabel="seconds")
    if seconds.has_data():
        seconds.set_ylim(0, 1.05 * seconds.dataLim.ymax)
    for panel in (reward, valid, length, seconds):
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if not panel.has_data() and not (panel is valid and alpha.has_data()):
            panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", va="center", color="grey")
    if reward.get_legend_handles_labels()[0]:
        reward.legend(fontsize="small")
    if alone and seconds.has_data():
        seconds.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an extension matplotlib does not know
        raise ReportError(
            f"{path}: cannot write the plot ({error}). Name a writable place, ending in .png or .pdf: --plot FILE."
        ) from None


def _line(panel, run: Run, name: str, **style) -> None:
    points = [(s, v) for s, v in zip(run.training_steps, run.column(name), strict=True) if v is not None]
    if points:
        panel.plot(*zip(*points, strict=True), marker="." if len(points) <= 60 else "", **style)


def _points(panel, run: Run, color: str, labelled: bool) -> None:
    sources = dict.fromkeys(result.source for result in run.held_out)
    for source, marker in zip(sources, cycle("osD^v<>ph*"), strict=False):
        results = [result for result in run.held_out if result.source == source]
        panel.errorbar(
            [result.step for result in results],
            [result.value for result in results],
            yerr=[nan if result.error is None else result.error for result in results],
            fmt=marker,
            color=color,
            capsize=4,
            label=f"held-out {source}" if labelled else None,
        )


def _stages(panel, run: Run) -> None:
    """Seconds of each step, stacked: the stages and the rest of the step, then validation on top."""
    steps = run.training_steps
    columns = {stage: run.column(name) for stage, name in STAGES.items()}
    columns |= {
        "save": run.column(SAVE_SECONDS),
        "other": run.other_seconds(),
        "test": run.column(TEST_SECONDS),
    }
    base = [0.0] * len(steps)
    for i, (stage, column) in enumerate(columns.items()):
        if any(column):
            top = [below + (value or 0.0) for below, value in zip(base, column, strict=True)]
            edges = [*(step - 0.5 for step in steps), steps[-1] + 0.5]
            panel.stairs(top, edges, baseline=base, fill=True, color=f"C{i}", label=stage)
            base = top
