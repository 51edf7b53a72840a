"""The report on several runs: beside the paper's tables, method beside method, seed against seed; small logs in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from test_report import ACCURACY, answer, assert_picture, step_metrics, write_run

from gpg_verl.report.__main__ import main
from gpg_verl.report.paper import MATHEMATICS, TABLES, find_row
from gpg_verl.report.runs import REWARD, load_run
from gpg_verl.report.tables import (
    beside_paper,
    cells,
    compare,
    group,
    half_width,
    mean_between,
    paired_p,
    seed_of,
    side_by_side,
)
from reward_fns.sources import LISA

T1, ROW = TABLES["T1"], "GPG-RS1"
ALL = {"AIME24": 0.4, "MATH-500": 0.9, "AMC23": 0.8, "Minerva": 0.3, "OlympiadBench": 0.5}


def train(folder: Path, steps: int = 3, row: str | None = ROW, table: str = "T1") -> Path:
    """A training run without validation."""
    claim = {"table": table, "row": row} if row else {}
    return write_run(folder, {s: step_metrics(0.1 * s) for s in range(1, steps + 1)}, **claim)


def evaluate(folder: Path, results: dict[str, float], k: int = 1, step: int = 3, table: str = "T1") -> Path:
    """A validation of veRL's: ten questions to a data source, k answers to each; of the questions a share is right."""
    (folder / "validation").mkdir(parents=True)
    data, lines = {}, []
    for n, (column, value) in enumerate(results.items()):
        source = TABLES[table].columns[column].source
        data |= {f"val-core/{source}/acc/mean@{k}": value, f"val-aux/{source}/truncated/mean@{k}": 0.1}
        for i in range(10):
            right = float(i < round(10 * value))
            lines += [answer(100 * n + i, j, right, data_source=source) for j in range(k)]
    (folder / "validation" / f"{step}.jsonl").write_text("".join(lines))
    return write_run(folder, {step: data})


def groups_of(*runs: Path, table: str | None = None, row: str | None = None):
    return group([load_run(run, table, row) for run in runs])


def line_of(table: str, groups, row: str, who: str) -> list[str]:
    """The cells of a line of the table, from the average on."""
    current = None
    for name, kind, *values in beside_paper(TABLES[table], groups).table.values.tolist():
        current = name or current
        if (current, kind) == (row, who):
            return values
    raise AssertionError(f"no line {row} {who}")


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_papers_averages_are_those_of_its_columns(table):
    """Against slips in copying; two of the paper's own averages do not fit their rows."""
    weights = table.weights or [1] * len(table.columns)
    misprinted = {("T2", "Qwen2.5-Math-7B (no template)"), ("T4", "Qwen2-VL-2B")}
    assert len(table.rows) >= 3
    for row, reported in table.rows.items():
        assert list(reported) == table.headers
        if table.average and reported[table.average] is not None and (table.name, row) not in misprinted:
            values = [reported[column] for column in table.columns]
            average = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert reported[table.average] == pytest.approx(average, abs=0.11), row


@pytest.mark.parametrize("name", ["gpg, f_norm=1, α=B/(B-M)", "GPG,F_norm=1,α=B/(B−M)"])
def test_a_row_is_found_however_it_is_typed(name):
    assert find_row("T3", name) == "GPG, F_norm=1, α=B/(B−M)"


SEEDS = [ALL | {"AIME24": value} for value in (0.3, 0.4, 0.5)]
FOUR = [{name: value} for name, value in zip(TABLES["T6"].columns, (0.4, 0.6, 0.8, 1.0), strict=True)]


@pytest.mark.parametrize(
    ("table", "row", "k", "runs", "expected", "notes"),
    [
        # s/√n of ten questions: √(p(1−p)/9); of the average √(Σ errors²)/5
        (
            *("T1", ROW, 1, [ALL]),
            {
                "paper": "55.7, 33.3, 87.6, 77.5, 29.4, 50.5",
                "ours": "58.0 ± 6.5, 40.0 ± 16.3, 90.0 ± 10.0, 80.0 ± 13.3, 30.0 ± 15.3, 50.0 ± 16.7",
                "difference": "+2.3, +6.7, +2.4, +2.5, +0.6, -0.5",
                "truncated": ", 10.0 %, 10.0 %, 10.0 %, 10.0 %, 10.0 %",
            },
            [
                "no run of ours: DeepSeek-R1-Distill-Qwen-1.5B; ",
                f"{ROW}: answers a question: AIME24 1 (10 questions), ",
            ],
        ),
        # of ten questions, not of eighty answers; a cell that the paper leaves empty has no difference
        (
            *("T2", "rStar-Math-7B", 8, [ALL]),
            {
                "paper": "-, 26.7, 78.4, 47.5, -, 47.1",
                "ours": "58.0 ± 6.5, 40.0 ± 16.3, 90.0 ± 10.0, 80.0 ± 13.3, 30.0 ± 15.3, 50.0 ± 16.7",
                "difference": ", +13.3, +11.6, +32.5, , +2.9",
            },
            ["AIME24 8 (10 questions), "],
        ),
        # mean and standard deviation over the seeds; the average is of complete runs
        (
            *("T1", ROW, 1, [*SEEDS, {"AIME24": 0.8}]),
            {"ours, 4 seeds": "58.0 ± 2.0, 50.0 ± 21.6, 90.0 ± 0.0, 80.0 ± 0.0, 30.0 ± 0.0, 50.0 ± 0.0"},
            ["not all of its 4 runs have a result, but: MATH-500 3, AMC23 3, Minerva 3, OlympiadBench 3"],
        ),
        # what is missing is empty and named, and makes no average
        (
            *("T1", ROW, 1, [{name: ALL[name] for name in ALL if name != "Minerva"}, {"AIME24": 0.6}, {}]),
            {"ours, 3 seeds": ", 50.0 ± 14.1, 90.0 ± 10.0, 80.0 ± 13.3, , 50.0 ± 16.7"},
            [
                f"{ROW}: no result, left empty: Minerva ({MATHEMATICS['Minerva']})",
                f"{ROW}: not all of its 3 runs have a result, but: AIME24 2, MATH-500 1, AMC23 1, OlympiadBench 1",
            ],
        ),
        # CV-Bench's total counts its 788, 650, 600 and 600 questions
        (
            *("T4", "+ GPG", 1, [{"Count": 0.8, "Relation": 0.5, "Depth": 0.4, "Distance": 0.2}]),
            {
                "paper": "76.15, 66.62, 83.23, 81.66, 75.50",
                "ours": "49.86 ± 7.46, 80.00 ± 13.33, 50.00 ± 16.67, 40.00 ± 16.33, 20.00 ± 13.33",
                "difference": "-26.29, +13.38, -33.23, -41.66, -55.50",
            },
            [],
        ),
        # four runs fill a row of classes; three have no average; a fifth gives its column a deviation
        ("T6", "+ GPG", 1, FOUR, {"ours": "70.0 ± 6.7, 40.0 ± 16.3, 60.0 ± 16.3, 80.0 ± 13.3, 100.0 ± 0.0"}, []),
        ("T6", "+ GPG", 1, FOUR[:3], {"ours": ", 40.0 ± 16.3, 60.0 ± 16.3, 80.0 ± 13.3, "}, ["left empty: Cars196"]),
        (
            *("T6", "+ GPG", 1, [*FOUR, {"Flower102": 0.6}]),
            {"ours, 2 seeds": "72.5 ± 6.3, 50.0 ± 14.1, 60.0 ± 16.3, 80.0 ± 13.3, 100.0 ± 0.0"},
            ["+ GPG: not all of its 2 runs have a result, but: Pets37 1, FGVC Aircraft 1, Cars196 1"],
        ),
        # a table of one column has no average
        ("T7", "+ GPG", 1, [{"GEOQA": 0.5}], {"ours": "50.00 ± 16.67", "difference": "-1.33"}, []),
    ],
)
def test_beside_the_paper(tmp_path, table, row, k, runs, expected, notes):
    paths = [evaluate(tmp_path / str(i), results, k, table=table) for i, results in enumerate(runs)]
    groups = groups_of(*paths, table=table, row=row)
    assert {who: ", ".join(line_of(table, groups, row, who)) for who in expected} == expected
    said = "\n".join(beside_paper(TABLES[table], groups).notes)
    assert [note for note in notes if note not in said] == []
    assert ("not all of its" in said) is ("not all of its" in "".join(notes))
    assert "SMOKE" not in said


def test_the_evaluation_stands_above_the_runs_own_validation(tmp_path):
    own = {f"val-core/{MATHEMATICS[c].source}/acc/mean@1": 0.1 for c in ("AIME24", "AMC23")}
    run = write_run(tmp_path / "rs1", {0: own, 1: step_metrics(0.5) | own}, table="T1", row=ROW)
    evaluate(run / "eval", {"AIME24": 0.4})
    found = cells(T1, [load_run(run)])
    assert {column: cell.mean for column, cell in found.items()} == {"AIME24": 40.0, "AMC23": 10.0}


def test_a_run_in_miniature_is_marked(tmp_path):
    (evaluate(tmp_path, {"GEOQA": 0.5}, table="T7") / "smoke").touch()
    groups = groups_of(tmp_path, table="T7", row="+ GPG")
    assert line_of("T7", groups, "+ GPG", "ours, SMOKE") == ["50.00 ± 16.67"]
    assert any("say nothing beside the paper's" in note for note in beside_paper(TABLES["T7"], groups).notes)


def boxes(folder: Path, ious: dict[str, list[float]]) -> Path:
    """A validation on LISA: the box IoU of each image's answer."""
    (folder / "validation").mkdir(parents=True)
    data, lines = {}, []
    for source, values in ious.items():
        right = [float(value >= 0.5) for value in values]
        data |= {f"val-core/{source}/acc/mean@1": sum(right) / len(right), f"val-aux/{source}/reward/mean@1": 0.9}
        data |= {f"val-aux/{source}/box_iou/mean@1": sum(values) / len(values)}
        for i, (value, acc) in enumerate(zip(values, right, strict=True)):
            lines.append(answer(len(lines) + i, 0, acc, data_source=source, box_iou=value))
    (folder / "validation" / "0.jsonl").write_text("".join(lines))
    return write_run(folder, {0: data})


def test_boxes_and_masks_are_told_apart(tmp_path):
    run = train(tmp_path / "run", row="+ GPG", table="T5")
    boxes(run / "eval", {f"{LISA}/test": [0.2, 0.6], f"{LISA}/val": [0.5, 0.5]})
    groups = groups_of(run)
    assert set(load_run(run / "eval").held_out.measure) == {"acc", "box_iou"}  # no reward beside an accuracy
    assert line_of("T5", groups, "+ GPG", "ours")[2:] == [""] * 4
    empty = f"+ GPG: no result, left empty: gIoU test (masks) ({LISA}/test, mask_giou)"
    assert any(note.startswith(empty) for note in beside_paper(TABLES["T5"], groups).notes)
    sources = {
        f"{LISA}/test": {"mask_giou": 0.3, "mask_giou_error": 0.1, "mask_ciou": 0.25, "step": 0, "images": 2},
        f"{LISA}/val": {"mask_giou": 0.6, "mask_giou_error": None, "mask_ciou": 0.7, "step": 0, "images": 2},
    }
    (run / "eval/masks.json").write_text(json.dumps({"segmenter": "tiny", "sources": sources}))
    groups = groups_of(run)
    ours = ["40.0 ± 20.0", "50.0 ± 0.0", "30.0 ± 10.0", "60.0", "25.0", "70.0"]
    assert line_of("T5", groups, "+ GPG", "ours") == ours  # no average
    assert line_of("T5", groups, "+ GPG", "difference") == ["-11.8", "-1.3", "-20.4", "", "", ""]
    assert line_of("T5", groups, "+ GPG", "paper") == ["51.8", "51.3", "50.4", "-", "-", "-"]
    assert any("mIoU is the mean IoU of boxes" in note for note in beside_paper(TABLES["T5"], groups).notes)


@pytest.mark.parametrize(
    ("path", "seed"), [("gpg-seed3", 3), ("seed2/gpg", 2), ("gpg_SEED=4", 4), ("gpg", None), ("seedling", None)]
)
def test_the_seed_is_in_the_folders_name(tmp_path, path, seed):
    assert seed_of(load_run(train(tmp_path / path))) == seed


@pytest.mark.parametrize(
    ("start", "end", "mean"), [(0, 2, 0.75), (0, 1, 0.5), (1, 2, 1.0), (0.5, 1.5, 0.875), (1, 1, 1)]
)
def test_mean_on_straight_lines(start, end, mean):
    assert mean_between(pd.Series([0.0, 1.0, 1.0]), start, end) == pytest.approx(mean)


def test_an_interval_is_students():
    assert half_width(pd.Series([1.0, 2.0, 3.0])) == pytest.approx(2.4841, abs=1e-4)  # 4.3027/√3
    assert pd.isna(half_width(pd.Series([1.0])))


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1.0, 1.0, 0.5], 0.0377), ([-1.0, 1.0, 0.0], 1.0), ([0.0, 0.0], 1.0), ([1.0, 1.0], 0.0)],
)
def test_paired(differences, p):
    assert paired_p(pd.Series(differences)) == pytest.approx(p, abs=1e-4)


def method(folder: Path, row: str, rewards: list[float], seconds=10.0, held_out=True, **more: float) -> Path:
    """A run of a method: a step for each reward, a validation before, and after each, that tells the same."""
    steps = {0: {ACCURACY: 0.0}} if held_out else {}
    for step, reward in enumerate(rewards, 1):
        steps[step] = {REWARD: reward, "timing_s/step": seconds} | more | ({ACCURACY: reward} if held_out else {})
    return write_run(folder, steps, row=row)


def three_seeds(tmp_path: Path) -> list[Path]:
    runs = []
    for seed, luck in enumerate((0.0, 0.1, 0.3), 1):
        runs.append(method(tmp_path / f"gpg-seed{seed}", "GPG", [0.2 + luck, 0.4 + luck]))
        runs.append(method(tmp_path / f"grpo-seed{seed}", "GRPO", [0.1 + luck, 0.2 + luck + seed / 100], 20.0))
    return runs


def test_methods_are_compared_seed_by_seed(tmp_path):
    section = compare(groups_of(*three_seeds(tmp_path)))
    assert section.title == "held-out result, mean over the run"
    ours, theirs = section.table[section.table.by == "step"].to_dict("records")
    # GPG's mean over steps 0 to 2: (0 + r1)/2 and (r1 + r2)/2, over two.
    assert (ours["model"], ours["mean"]) == ("GPG", pytest.approx(0.2 + 0.75 * 0.4 / 3))
    assert ours["±"] == pytest.approx(0.285, abs=1e-3)
    assert (theirs["model"], theirs["pairs"]) == ("GRPO", "3")
    assert theirs["difference"] == pytest.approx(-0.1 + 0.02 / 4)
    assert theirs["± "] == pytest.approx(4.3027 * 0.0025 / 3**0.5, abs=1e-5)  # luck is the pair's
    assert theirs["p"] < theirs["p, Holm"] < 0.05
    # GRPO's step takes twice the time: what is compared ends with GPG's last second.
    assert "by second: the mean from 0 to 20" in section.notes
    assert any("Holm's correction for the 2 comparisons" in note for note in section.notes)
    assert section.notes[-1].startswith("beyond noise: GRPO by step -0.095; ")
    assert section.texts().values.tolist()[0][:5] == ["GPG", "step", "3", "0.300", "0.285"]


@pytest.mark.parametrize("slower", [10.0, 14.0])  # alike, the two tests have one p
def test_inside_the_noise_nothing_is_called_different(tmp_path, slower):
    """Nor where one of the two tests is below 0.05 alone; Holm: the smaller p twice, the other at least that."""
    runs = []
    for seed, (shift, seconds) in enumerate(((0.1, 10.0), (0.12, slower), (0.25, 10.0)), 1):
        runs.append(method(tmp_path / f"a-seed{seed}", "A", [0.5, 0.5]))
        runs.append(method(tmp_path / f"b-seed{seed}", "B", [0.5 + shift, 0.5 + shift], seconds))
    section = compare(groups_of(*runs))
    tests = section.table.dropna(subset="p").sort_values("p")
    assert tests["p, Holm"].tolist() == pytest.approx([2 * tests.p.min(), max(2 * tests.p.min(), tests.p.max())])
    assert section.notes[-1] == "beyond noise: no difference in this table"


@pytest.mark.parametrize(
    "names",
    [
        ["a-1", "a-2", "b-1", "b-2"],
        ["a-seed1", "a-seed2", "b-seed11", "b-seed12"],
        ["a-seed1", "a-seed2", "b-seed1-1", "b-seed1-2", "b-seed2"],  # two are in no pair
    ],
)
def test_no_pairs_no_test(tmp_path, names):
    section = compare(groups_of(*(method(tmp_path / name, name[0], [0.1, 0.2]) for name in names)))
    assert section.table.p.isna().all()
    assert "b: fewer than two seeds that a has too, so no paired test" in section.notes


def test_without_validations_the_training_reward_is_compared(tmp_path):
    """And without seconds no seconds; with β_th a reader is warned."""
    steps = {"held_out": False, "gpg/prompts_refilled": 4.0, "seconds": float("nan")}
    section = compare(
        groups_of(*(method(tmp_path / f"{m}-seed{i}", m, [0.1, 0.2], **steps) for m in "ab" for i in (1, 2)))
    )
    assert section.title.startswith("training reward")
    assert any("chosen groups" in note for note in section.notes)
    assert section.table.by.unique().tolist() == ["step"]
    assert any(note.startswith("not compared by second: a run did not log it") for note in section.notes)


def test_what_is_compared_is_what_all_runs_have(tmp_path):
    """A run starts later, another ends earlier, and one validation is no curve. Two pairs are enough for a test."""
    runs = []
    for name, steps in (("a", (1, 2, 3)), ("b", (2, 3, 4))):
        logged = {step: {REWARD: 0.1 * step} | ({ACCURACY: 0.5} if step == 3 else {}) for step in steps}
        runs += [write_run(tmp_path / f"{name}-seed{seed}", logged, row=name) for seed in (1, 2)]
    section = compare(groups_of(*runs))
    assert section.title.startswith("training reward")
    assert section.notes[0] == "by step: the mean from 2 to 3"
    assert section.table["mean"].tolist() == pytest.approx([0.25, 0.25])
    assert section.table.p.dropna().tolist() == [1.0]


def test_rows_side_by_side(tmp_path):
    """Three seeds of one method, one of them behind, and a method of one run that was never validated."""
    seeds = []
    for seed, (steps, last) in enumerate([(4, 0.6), (4, 0.8), (2, 0.7)]):
        logged = {s: step_metrics(0.1 * s, **{"timing_s/step": 10.0 + seed}) for s in range(1, steps)}
        end = {steps: step_metrics(0.1 * steps) | {ACCURACY: last}}
        seeds.append(write_run(tmp_path / f"seed{seed}", {0: {ACCURACY: 0.1 * seed}} | logged | end, row="GPG"))
    other = train(tmp_path / "GRPO", row=None)
    first, second = side_by_side(groups_of(*seeds, other)).table.to_dict("records")
    assert first == {
        "model": "GPG",
        "runs": "3",
        "steps": "2 to 4",
        "reward, last": "0.333 ± 0.115",  # 0.4, 0.4, 0.2
        "held-out, first": "0.100 ± 0.100",
        "held-out, last": "0.700 ± 0.100",
        "valid share": "0.62 ± 0.00",
        "s per step": "10.58 ± 0.52",  # 10, 10.75, 11: the last step took 10
    }
    assert (second["runs"], second["steps"], second["reward, last"]) == ("1", "3", "0.300")
    assert second["held-out, first"] == second["held-out, last"] == ""


def test_the_report_of_several_runs(tmp_path, capsys):
    """One finished, one going (a line half written, no evaluation yet), one that died before its first step."""
    done, going, dead = train(tmp_path / "done", 80), train(tmp_path / "<b>going", row="GPG-RS3"), tmp_path / "dead"
    evaluate(done / "eval", ALL)
    (going / "eval").mkdir()
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "data": {"critic/sco')
    dead.mkdir()
    (dead / "metrics.jsonl").touch()
    assert main([str(done), str(going), str(dead)]) == 0
    out = capsys.readouterr().out
    parts = (
        *("T1: 1.5B models", "side by side", "GPG-RS3: evaluation left out:"),
        *(f"{ROW} ({done}): steps 1 to 80", f"GPG-RS3 ({going}): steps 1 to 3"),
        f"note: left out: {dead / 'metrics.jsonl'}: it holds no complete step",
    )
    assert [part for part in parts if part not in out] == []
    folder = done / "report"
    assert_picture(folder / "curves.png")
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page)  # self-contained
    assert "&lt;b&gt;going" in page
    assert "<b>" not in page  # what a name holds is text
    shown = ("58.0 ± 6.5", "+2.3", "the last line is incomplete", "GPG-RS3", "DeepSeek-R1-Distill-Qwen-1.5B; Still")
    assert [part for part in shown if part not in page] == []
    result = json.loads((folder / "report.json").read_text())
    assert [run["label"] for run in result["runs"]] == [ROW, "GPG-RS3"]
    assert result["runs"][0]["steps"]["2"]["gpg/alpha"] == 1.6
    row = next(row for row in result["rows"] if row["row"] == ROW)
    assert (row["ours"]["Avg"]["mean"], row["paper"]["MATH-500"]) == (pytest.approx(58.0), 87.6)


def test_rows_named_on_the_command_line(tmp_path, capsys):
    runs = [str(evaluate(tmp_path / name, ALL)) for name in ("a", "b")]
    asked = ["--table", "T1", "--row", "gpg-rs1", "--row", "GPG-RS3", "--out", str(tmp_path / "out")]
    assert main([*runs, *asked]) == 0
    out = capsys.readouterr().out
    assert out.count(" ours  ") == 2
    assert f"{ROW} ({runs[0]}): " in out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"curves.png", "report.html", "report.json"}


def test_methods_of_no_table(tmp_path, capsys):
    assert main([*map(str, three_seeds(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "no run says which row" in out
    assert "held-out result, mean over the run" in out
    assert "beyond noise: GRPO by step -0.095" in (tmp_path / "out/report.html").read_text()
    result = json.loads((tmp_path / "out/report.json").read_text())
    assert result["rows"] == []
    compared = result["tables"]["held-out result, mean over the run"]["rows"]
    assert (compared[0]["difference"], compared[1]["difference"]) == (None, pytest.approx(-0.095))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no metrics file here"),
        (["run", "--table", "T2"], "'GPG-RS1' is no row of T2. Its rows: Qwen2.5-Math-7B-Instruct; "),
        (["run", "--row", "GPG-RS1"], "--row needs --table, one of T1, T2, T3"),
        (["run", "--table", "T1", "--row", "a", "--row", "b"], "--row is given 2 times for 1 runs"),
        (["claims"], "'T9' is no table: expected one of T1, T2, T3"),
        (["run", "--out", "run/metrics.jsonl"], "File exists: 'run/metrics.jsonl'"),
    ],
)
def test_errors(tmp_path, capsys, monkeypatch, arguments, message):
    train(tmp_path / "claims", table="T9")
    train(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
