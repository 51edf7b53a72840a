"""Learning curves as one picture, and the report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from gpg_verl.report import ReportError
from gpg_verl.report.runs import ALPHA, ENTROPY, LENGTH, REWARD, TRUNCATED, VALID_SHARE, Run
from gpg_verl.report.tables import LEAST_SECONDS, Groups, Section, accuracy, half_width, held_out, summary

SMOOTH_FROM = 60  # more points than this are drawn as running mean
UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


def curves(groups: Groups, path: Path) -> None:
    """Draw reward and held-out accuracy by step and by time, valid share and α, length, entropy, seconds by stage."""
    from matplotlib.figure import Figure  # takes a second to import; the Agg canvas is its default
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    every = [run for runs in groups.values() for run in runs]
    longest = max((run.seconds().max() for run in every if len(run.seconds())), default=0)
    unit = next((unit for unit, of in UNITS.items() if longest >= 2 * of), "seconds")
    specs = (  # title, label, what is drawn (no metrics: held-out accuracy), and by which time
        ("Training reward by step", "mean reward", [REWARD], None),
        ("Training reward by time", "mean reward", [REWARD], unit),
        ("Held-out accuracy by step", "share right", [], None),
        ("Held-out accuracy by time", "share right", [], unit),
        ("Valid share (B − M)/B, and α (dashed)", "valid share", [VALID_SHARE], None),
        ("Response length, and share at the limit (dashed)", "tokens", [LENGTH], None),
        ("Entropy of the policy, with calculate_entropy=True", "nats per token", ENTROPY, None),
    )
    dashed = {4: (ALPHA, "α"), 5: (TRUNCATED, "share")}  # panel → what is drawn dashed, and its label
    figure = Figure(figsize=(12, 16), layout="constrained")
    *panels, seconds = figure.subplots(4, 2).ravel()
    for number, (panel, (title, label, metrics, time)) in enumerate(zip(panels, specs, strict=True)):
        for i, runs in enumerate(groups.values()):
            if metrics:
                _line(panel, runs, [run.column(*metrics) for run in runs], time, color=f"C{i % 10}")
            elif len(groups) > 1:
                _line(panel, runs, [accuracy(run) for run in runs], time, color=f"C{i % 10}")
            else:
                _sources(panel, runs, time)
        if number in dashed:
            metric, name = dashed[number]
            twin = panel.twinx()
            for i, runs in enumerate(groups.values(), len(groups) == 1):  # another colour than the one line
                _line(twin, runs, [run.column(metric) for run in runs], color=f"C{i % 10}", linestyle="--")
            twin.set(ylabel=name, ylim=(0, 1.05 * max(1.0, twin.dataLim.ymax) if twin.has_data() else 1.05))
        panel.set(title=title, ylabel=label, xlabel=f"{time} of training and validation" if time else "step")
        panel.grid(alpha=0.3)
        if not time:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if not panel.has_data():
            panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", va="center", color="grey")
    panels[4].set_ylim(0, 1.05)  # a share
    _stages(seconds, groups)
    how = "mean over the seeds that got so far, band: its 95 % interval" if len(every) > len(groups) else ""
    if any(len(run.training) > SMOOTH_FROM for run in every):
        how += f"{how and '; '}bold: running mean"
    lines = [Line2D([], [], color=f"C{i % 10}", label=label) for i, (_, label) in enumerate(groups)]
    figure.legend(handles=lines, loc="outside upper center", ncols=2, title=how)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an extension matplotlib does not know
        fix = "Name a writable place, ending in .png or .pdf: --plot FILE."
        raise ReportError(f"{path}: cannot write the plot ({error}). {fix}") from None


def _line(panel, runs: Sequence[Run], of_runs: list[pd.Series], unit: str | None = None, **style) -> None:
    """The mean over the runs at each step, with its 95 % interval; by time if a unit is given."""
    values = pd.concat([of_run.dropna() for of_run in of_runs], axis=1).sort_index()
    x = values.index
    if unit:
        times = pd.concat([run.seconds() for run in runs], axis=1).mean(axis=1) / UNITS[unit]
        values = values[values.index.isin(times.index)]
        x = times[values.index]
    if values.empty:
        return
    lines = pd.DataFrame({"mean": values.mean(axis=1), "half": half_width(values.T) if len(runs) > 1 else 0.0})
    if many := len(lines) > SMOOTH_FROM:
        if len(runs) == 1:
            panel.plot(x, lines["mean"], alpha=0.25, linewidth=0.8, color=style["color"])
        lines = lines.rolling(2 * (len(lines) // SMOOTH_FROM) + 3, center=True, min_periods=1).mean()
    panel.plot(x, lines["mean"], marker="" if many else ".", **style)
    low, high = lines["mean"] - lines.half, lines["mean"] + lines.half
    panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _sources(panel, runs: Sequence[Run], unit: str | None) -> None:
    """Each data source of a group by itself; of one run with the standard errors."""
    sources = pd.concat([run.validations.source for run in runs]).unique()
    for i, source in enumerate(sources):
        lines = [run.validations[run.validations.source == source].set_index("step") for run in runs]
        _line(panel, runs, [line.value for line in lines], unit, color=f"C{i % 10}", label=source)
        if len(runs) == 1 and not unit:
            panel.errorbar(lines[0].index, lines[0].value, lines[0].error, fmt="none", capsize=4, ecolor=f"C{i % 10}")
    if len(sources) and not unit:
        panel.legend(fontsize="small", title="± s.e." if len(runs) == 1 else None)


def _stages(panel, groups: Groups) -> None:
    """Seconds of each step of one run, stacked; of several groups the means, with validation and saving spread over all
    steps."""
    frames = {label: pd.concat([run.stages().fillna(0) for run in runs]) for (_, label), runs in groups.items()}
    alone = len(groups) == 1 and len(next(iter(groups.values()))) == 1
    table = next(iter(frames.values())) if alone else pd.DataFrame({k: f.mean() for k, f in frames.items()}).T
    table = table.loc[:, table.max() >= LEAST_SECONDS]
    panel.set_title("Seconds by stage of each step" if alone else "Seconds by stage, mean over the steps")
    if table.empty:
        return
    if alone:
        table.plot.bar(stacked=True, width=1.0, ax=panel)
        panel.set_xticks(range(0, len(table), 1 + len(table) // 10), table.index[:: 1 + len(table) // 10], rotation=0)
    else:
        table.plot.barh(stacked=True, width=0.8, ax=panel)
        panel.set_yticks([])
        panel.invert_yaxis()
        for i, label in enumerate(table.index):  # on the bars: long names would take half of the picture
            panel.text(0.02, i, label, transform=panel.get_yaxis_transform(), va="center", fontsize="small")
    panel.legend(fontsize="small", ncols=1 if alone else 3, reverse=alone)


# ---- the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: .25em .9em; text-align: right; white-space: nowrap; border: 0 }
th { border-bottom: 2px solid #888 }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
tr:has(td:first-child:empty) td { background: #eef4ff }
img { width: 100% }
"""


def page(sections: Sequence[Section], runs: Sequence[Run], curves: Path) -> str:
    """The sections, the curves, and the validations of each run."""
    each = [held_out(run, f"{run.label}: {run.name}, {summary(run)}") for run in runs]
    return "\n".join([head("Report"), *map(html_section, sections), html_picture(curves), *map(html_section, each)])


def head(title: str) -> str:
    return f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"


def html_section(section: Section) -> str:
    """A heading, the table, and the notes."""
    table = section.texts().to_html(index=False, border=0) if len(section.table) else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
    return f"<h2>{escape(section.title)}</h2>\n{table}\n<ul>{notes}</ul>"


def html_picture(file: Path) -> str:
    return f"<img alt='learning curves' src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"
