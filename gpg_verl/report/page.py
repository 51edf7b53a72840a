"""The report as one HTML page that needs nothing else: tables, notes and the curves as an embedded picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gpg_verl.report.compare import Group, table_lines, table_notes
from gpg_verl.report.paper import PaperTable
from gpg_verl.report.seeds import Compared, compared_cells, compared_notes
from gpg_verl.report.table import SPREAD, group_cells, held_out_cells, notes, summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .9em; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888 }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
tr.ours td { background: #eef4ff }
tr.first td { border-top: 1px solid #ddd }
.scroll { overflow-x: auto }
img { width: 100% }
ul { color: #555 }
"""


def write_page(
    tables: Sequence[PaperTable],
    groups: Sequence[Group],
    curves: Path,
    file: Path,
    compared: Compared | None,
    seeds: Path,
) -> None:
    """`seeds`: the picture of `compared`, where there is one."""
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Report</title><style>{STYLE}</style>"]
    for table in tables:
        parts.append(f"<h1>{escape(table.name)}: {escape(table.title)} (%)</h1>")
        parts.append(html_table(*table_lines(table, groups)))
        parts.append(html_notes(table_notes(table, groups)))
    if len(groups) > 1:
        parts.append("<h1>Side by side</h1>")
        parts.append(html_table(*group_cells(groups)))
        parts.append(html_notes([SPREAD]))
    if compared:
        parts.append(f"<h1>Methods compared: {escape(compared.measure)}, mean over the run</h1>")
        parts.append(html_table(*compared_cells(compared)))
        parts.append(html_notes(compared_notes(compared)))
        parts.append(html_picture(seeds, "means and intervals"))
    parts.append("<h1>Learning curves</h1>")
    parts.append(html_picture(curves, "learning curves"))
    parts.append("<h1>Runs</h1>")
    for g in groups:
        for run in g.runs:
            parts.append(f"<h2>{escape(g.label)}: {escape(run.name)}</h2>")
            parts.append(f"<p>{escape(summary(run))}</p>")
            if run.held_out:
                parts.append(html_table(*held_out_cells(run)))
            parts.append(html_notes(notes(run)))
    file.write_text("\n".join(parts), encoding="utf-8")


def html_table(header: list[str], lines: list[list[str]]) -> str:
    rows = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for line in lines:
        kind = "first" if line[0] else "ours"
        body.append(f"<tr class='{kind}'>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>")
    return f"<div class='scroll'><table><tr>{rows}</tr>{''.join(body)}</table></div>"


def html_notes(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def html_picture(file: Path, alt: str) -> str:
    return f"<img alt='{alt}' src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}'>"
