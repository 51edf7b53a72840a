"""What the study of knobs.py says: intervals, paired comparisons, tables and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from knobs_study import CELLS, CLIP, MEASURES, METHODS, OPTIMIZERS, PAIRS
from rich.console import Console
from rich.table import Table

from gpg_verl.report.tables import half_width, holm, paired_p

# A method whose rate is at an end of the grid might have a better one beyond it.
DAGGER, AT_END = " †", "a best rate was at an end of the grid"


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean, and half of its 95 % interval."""
    values = pd.Series(np.asarray(values, dtype=float))
    return {"mean": float(values.mean()), "half": float(half_width(values)), "n": len(values)}


def area(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """The mean of y over x from 0 to `end`, between its points on straight lines."""
    inside = x < end
    x, y = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y, x) / end)


def outcome(found: dict, optimizer: str, what: str) -> dict[str, np.ndarray]:
    """Method → (seeds, rates) the mean success rate over the run."""
    success = {m: found[f"{optimizer}/{m}/success"] for m in METHODS}
    if what in ("step", "one rate"):
        return {m: np.trapezoid(y) / (y.shape[-1] - 1) for m, y in success.items()}
    spent = {m: found[f"{optimizer}/{m}/{what}"] for m in METHODS}
    end = min(float(x[..., -1].min()) for x in spent.values())
    return {
        m: np.array([[area(x, y, end) for x, y in zip(*pair, strict=True)] for pair in zip(spent[m], y, strict=True)])
        for m, y in success.items()
    }


def at_best_rate(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(seeds,) of (seeds, rates): each seed at the rate that is best on the seeds of the other half; and which."""
    halves = np.arange(len(values)) % 2
    best = np.array([values[halves != half].mean(0).argmax() if len(values) > 1 else 0 for half in halves])
    return values[np.arange(len(values)), best], best


def analyse(out: Path) -> dict:
    """Numbers of every cell in the folder: intervals of the methods, and the pairs compared."""
    files = [out / f"{name}.npz" for name in CELLS if (out / f"{name}.npz").exists()]
    methods, pairs, gradient = [], [], []
    for file in files:
        found = dict(np.load(file))
        optimizers = dict.fromkeys(key.partition("/")[0] for key in found if key.endswith("/success"))
        for optimizer in optimizers:
            where = {"cell": file.stem, "optimizer": optimizer}
            _, rates, one = OPTIMIZERS[optimizer]
            for what in MEASURES:
                by_rate, values, at_end = outcome(found, optimizer, what), {}, set()
                for m, of_rates in by_rate.items():
                    values[m], chosen = of_rates[:, rates.index(one)], [one]
                    if what != "one rate":
                        values[m], best = at_best_rate(of_rates)
                        chosen = [rates[i] for i in best[:2]]  # of the two halves
                        if {rates[0], rates[-1]} & set(chosen):
                            at_end.add(m)
                    found_here = interval(values[m])
                    methods.append(where | {"measure": what, "method": m, **found_here, "rates": chosen})
                for ours, theirs in PAIRS:
                    differences = pd.Series(values[ours] - values[theirs], dtype=float)
                    pair = {"measure": what, "method": ours, "against": theirs, "at end": bool(at_end & {ours, theirs})}
                    pairs.append(where | pair | interval(differences) | {"p": float(paired_p(differences))})
        for method in METHODS:
            for what in ("cosine", "noise", "alpha", "alpha varies"):
                seen = interval(found[f"gradient/{method}/{what}"])
                gradient.append({"cell": file.stem, "method": method, "what": what, **seen})
            optimizer = next(iter(optimizers))
            at_one = {what: found[f"{optimizer}/{method}/{what}"] for what in ("norm", "valid")}
            _, rates, one = OPTIMIZERS[optimizer]
            at_one = {what: column[:, rates.index(one)] for what, column in at_one.items()}
            for what, of_seeds in {
                "above 1": (at_one["norm"] > CLIP).mean(-1),
                "valid, first step": at_one["valid"][:, 0],
                "valid, last step": at_one["valid"][:, -1],
            }.items():
                seen = interval(of_seeds.astype(float))
                gradient.append({"cell": file.stem, "method": method, "what": what, **seen})
    for what in MEASURES:
        same = [pair for pair in pairs if pair["measure"] == what and pair["p"] is not None]
        for pair, p in zip(same, holm(pd.Series([pair["p"] for pair in same])), strict=True):
            pair["p after Holm"], pair["comparisons"] = p, len(same)
    return {"methods": methods, "pairs": pairs, "gradient": gradient}


def tell(found: dict) -> None:
    """The tables on the terminal."""
    console = Console(width=150)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in found["methods"]))

    def of(rows: list[dict], **what) -> dict | None:
        return next((row for row in rows if what.items() <= row.items()), None)

    for cell in dict.fromkeys(row["cell"] for row in found["methods"]):
        for what in MEASURES:
            table = Table(title=f"{CELLS[cell].label}: success rate, mean over the run, {MEASURES[what]}")
            table.add_column("method")
            for optimizer in optimizers:
                table.add_column(OPTIMIZERS[optimizer][0], justify="right")
            for m, method in METHODS.items():
                cells = [of(found["methods"], cell=cell, optimizer=o, measure=what, method=m) for o in optimizers]
                table.add_row(method.label, *map(with_half, cells))
            console.print(table)
        table = Table(title=f"{CELLS[cell].label}: one batch's gradient at the start, and the run at one rate")
        columns = {
            "cosine": "cosine with exact",
            "noise": "noise / expectation",
            "alpha": "α",
            "alpha varies": "std α / α",
            "above 1": "norm above 1",
            "valid, first step": "valid, first",
            "valid, last step": "last step",
        }
        table.add_column("method")
        for header in columns.values():
            table.add_column(header, justify="right")
        for m, method in METHODS.items():
            cells = [of(found["gradient"], cell=cell, method=m, what=what) for what in columns]
            table.add_row(method.label, *map(with_half, cells))
        console.print(table)
    for what in MEASURES:
        pairs = [pair for pair in found["pairs"] if pair["measure"] == what]
        beyond = [pair for pair in pairs if pair.get("p after Holm", 1) < 0.05]
        console.print(f"\n{MEASURES[what]}: {len(pairs)} comparisons, {len(beyond)} beyond noise (p < 0.05 after Holm)")
        if any(pair["at end"] for pair in beyond):
            console.print(f"  {DAGGER.strip()} {AT_END}")
        for pair in beyond:
            console.print(
                f"  {CELLS[pair['cell']].label}, {OPTIMIZERS[pair['optimizer']][0]}: {METHODS[pair['method']].label} − "
                f"{METHODS[pair['against']].label} = {with_half(pair, '+.3f')}{DAGGER * pair['at end']}"
            )


def with_half(row: dict, spec: str = ".3f") -> str:
    return format(row["mean"], spec) + ("" if row["half"] is None else f" ± {row['half']:.3f}")


def save(figure, file: Path) -> None:
    """As a PNG of few colours, a third of the size."""
    from PIL import Image

    figure.savefig(file, dpi=100)
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)  # keeps the colours of thin lines
    small.save(file, optimize=True)


def picture_differences(found: dict, what: str, file: Path) -> None:
    """A panel for each optimizer: cells down, pairs across, each with its difference and interval."""
    from matplotlib.figure import Figure

    rows = [pair for pair in found["pairs"] if pair["measure"] == what]
    cells, optimizers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("cell", "optimizer"))
    figure = Figure(figsize=(11, 0.6 + (0.46 * len(cells) + 0.55) * len(optimizers)), layout="constrained")
    panels = figure.subplots(len(optimizers), 1, squeeze=False, sharex=True)[:, 0]
    for panel, optimizer in zip(panels, optimizers, strict=True):
        mean = np.zeros((len(cells), len(PAIRS)))
        for row in (row for row in rows if row["optimizer"] == optimizer):
            i, j = cells.index(row["cell"]), PAIRS.index((row["method"], row["against"]))
            mean[i, j] = row["mean"]
            clear = row.get("p after Holm", 1) < 0.05
            panel.text(
                j, i, with_half(row, "+.3f") + DAGGER * row["at end"], ha="center", va="center", fontsize=8,
                color="black" if clear else "grey", weight="bold" if clear else "normal",
            )  # fmt: skip
        panel.imshow(mean, cmap="RdYlGn", vmin=-0.15, vmax=0.15, aspect="auto", alpha=0.6)
        panel.set_title(OPTIMIZERS[optimizer][0], fontsize=10, loc="left")
        panel.set_yticks(range(len(cells)), [CELLS[cell].label for cell in cells], fontsize=8)
        panel.set_xticks(range(len(PAIRS)), [f"{METHODS[a].label}\n− {METHODS[b].label}" for a, b in PAIRS], fontsize=7)
    figure.suptitle(
        f"Difference in success rate, mean over the run, {MEASURES[what]}\n"
        f"± 95 % interval over {rows[0]['n']} seeds; bold: beyond noise after Holm for {len(rows)} comparisons"
        + (f"; {DAGGER.strip()} {AT_END}" if any(row["at end"] for row in rows) else ""),
        fontsize=10,
    )
    save(figure, file)


def picture_curves(out: Path, file: Path, optimizer: str = "adamw_clip") -> None:
    """Success by step, response and token computed, at each method's best rate: mean and interval."""
    from matplotlib.figure import Figure

    names = [n for n in ("held005", "held02", "rising", *CELLS) if (out / f"{n}.npz").exists()]
    names = list(dict.fromkeys(names))[:3]
    figure = Figure(figsize=(11, 2.4 * len(names) + 0.8), layout="constrained")
    grid = figure.subplots(len(names), 3, squeeze=False, sharey="row")
    for panels, name in zip(grid, names, strict=True):
        found = dict(np.load(out / f"{name}.npz"))
        for i, (m, method) in enumerate(METHODS.items()):
            success = found[f"{optimizer}/{m}/success"]
            seeds = np.arange(len(success))
            best = at_best_rate(outcome(found, optimizer, "step")[m])[1]
            success = success[seeds, best]
            mean = success.mean(0)
            half = np.array([np.nan_to_num(interval(column)["half"]) for column in success.T])
            for panel, what in zip(panels, ("step", "responses", "passes"), strict=True):
                x = np.arange(len(mean)) if what == "step" else found[f"{optimizer}/{m}/{what}"][seeds, best].mean(0)
                panel.plot(x, mean, color=f"C{i}", linewidth=1.2, label=method.label)
                panel.fill_between(x, mean - half, mean + half, color=f"C{i}", alpha=0.12, linewidth=0)
                panel.grid(alpha=0.3)
                panel.set_xlabel({"step": "step", "responses": "responses generated", "passes": "token passes"}[what])
        for panel in panels[1:]:  # β_th goes on far beyond the others
            panel.set_xlim(0, 3 * min(line.get_xdata()[-1] for line in panel.lines))
        panels[0].set_ylabel("success rate")
        panels[1].set_title(CELLS[name].label, fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, title=OPTIMIZERS[optimizer][0])
    save(figure, file)


def picture_gradients(found: dict, file: Path) -> None:
    """Bias (as 1 − cosine) and noise of one batch's gradient, by cell and method."""
    from matplotlib.figure import Figure

    rows = found["gradient"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure = Figure(figsize=(11, 0.42 * len(cells) + 1.8), layout="constrained")
    titles = {
        "cosine": "cosine of the expected gradient\nwith the exact one (1: no bias)",
        "noise": "noise of one batch, in lengths\nof the expected gradient",
        "alpha varies": "how much α varies from batch\nto batch: std/mean",
    }
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (what, title) in zip(panels, titles.items(), strict=True):
        for i, (m, method) in enumerate(METHODS.items()):
            some = [row for row in rows if (row["method"], row["what"]) == (m, what)]
            y = np.arange(len(cells)) + (i - 3.5) * 0.09
            half = [row["half"] or 0.0 for row in some]
            mean = [row["mean"] for row in some]
            panel.errorbar(mean, y, xerr=half, fmt="o", markersize=3, color=f"C{i}", label=method.label)
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(cells)), [CELLS[cell].label for cell in cells], fontsize=8)
    panels[0].invert_yaxis()
    panels[1].set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    save(figure, file)
