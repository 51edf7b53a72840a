"""The report beside the paper's tables: small logs in; table, curves, page and JSON out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_report import ACCURACY, answer, assert_picture, lines_of, step_metrics

from gpg_verl.report import ReportError
from gpg_verl.report.__main__ import main
from gpg_verl.report.compare import cells, find_row, group, load_entry, table_json, table_lines, table_notes
from gpg_verl.report.metrics import load_run
from gpg_verl.report.paper import MATHEMATICS, TABLES
from gpg_verl.report.table import group_cells
from reward_fns.sources import LISA

T1 = TABLES["T1"]
ROW = "GPG-RS1"


def train(folder: Path, steps: int = 3, row: str | None = ROW, table: str = "T1") -> Path:
    """A training run without validation."""
    folder.mkdir(parents=True)
    if row:
        (folder / "run.json").write_text(json.dumps({"table": table, "row": row}))
    (folder / "metrics.jsonl").write_text(lines_of({s: step_metrics(0.1 * s) for s in range(1, steps + 1)}))
    return folder


def evaluate(folder: Path, results: dict[str, float], k: int = 1, step: int = 3, table: str = "T1") -> Path:
    """A validation of veRL's: ten questions to a data source, k answers to each; of the questions a share is right."""
    dump = folder / "validation" / f"{step}.jsonl"
    dump.parent.mkdir(parents=True)
    data, lines = {}, []
    for n, (column, value) in enumerate(results.items()):
        source = TABLES[table].columns[column].source
        data |= {f"val-core/{source}/acc/mean@{k}": value, f"val-aux/{source}/truncated/mean@{k}": 0.1}
        for i in range(10):
            right = float(i < round(10 * value))
            lines += [answer(100 * n + i, j, right, data_source=source) for j in range(k)]
    dump.write_text("".join(lines))
    (folder / "metrics.jsonl").write_text(lines_of({step: data}))
    return folder


ALL = {"AIME24": 0.4, "MATH-500": 0.9, "AMC23": 0.8, "Minerva": 0.3, "OlympiadBench": 0.5}


def line_of(lines: list[list[str]], row: str, who: str) -> list[str]:
    """The cells of a line of the table, from the average on."""
    current = None
    for name, kind, *values in lines:
        current = name or current
        if (current, kind) == (row, who):
            return values
    raise AssertionError(f"no line {row} {who}")


# --- the paper's tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_papers_averages_are_those_of_its_columns(table):
    """Against slips in copying; two of the paper's own averages do not fit their rows."""
    weights = table.weights or [1] * len(table.columns)
    for row, values in table.rows.items():
        assert len(values) == len(table.headers)
        average, *values = values if table.average else [None, *values]
        if average is not None and (table.name, row) not in {
            ("T2", "Qwen2.5-Math-7B (no template)"),
            ("T4", "Qwen2-VL-2B"),
        }:
            assert average == pytest.approx(
                sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights), abs=0.11
            ), row


@pytest.mark.parametrize("name", ["gpg, f_norm=1, α=B/(B-M)", "GPG,F_norm=1,α=B/(B−M)"])
def test_a_row_is_found_however_it_is_typed(name):
    assert find_row(TABLES["T3"], name) == "GPG, F_norm=1, α=B/(B−M)"


def test_a_row_that_is_none():
    with pytest.raises(
        ReportError, match=r"'GPG-RS2' is no row of T1\. Its rows: .*GPG-RS1; GPG-RS3\. Name one with --row"
    ):
        find_row(T1, "GPG-RS2")


# --- our cells ------------------------------------------------------------------------------------


def test_one_run_beside_the_paper(tmp_path):
    run = train(tmp_path / "rs1")
    evaluate(run / "eval", ALL)
    groups = group([load_entry(run)])
    header, lines = table_lines(T1, groups)
    assert header == ["model", "", "Avg", *MATHEMATICS]
    assert line_of(lines, ROW, "paper") == ["55.7", "33.3", "87.6", "77.5", "29.4", "50.5"]
    # s/√n of ten questions: √(p(1−p)/9)
    assert line_of(lines, ROW, "ours")[1:3] == ["40.0 ± 16.3", "90.0 ± 10.0"]
    assert line_of(lines, ROW, "ours")[0] == "58.0 ± 6.5"  # √(Σ errors²)/5
    assert line_of(lines, ROW, "difference") == ["+2.3", "+6.7", "+2.4", "+2.5", "+0.6", "-0.5"]
    assert line_of(lines, ROW, "truncated") == ["", *["10.0 %"] * 5]
    notes = table_notes(T1, groups)
    assert "AIME24: pass@1 over 10 questions" in notes
    assert any(note.startswith("no run of ours: DeepSeek-R1-Distill-Qwen-1.5B; ") for note in notes)


def test_several_answers_to_a_question_are_avg_at_k(tmp_path):
    evaluate(tmp_path / "eval", {"AIME24": 0.4}, k=8)
    (cell,) = cells(T1, [load_entry(tmp_path / "eval", "T1", ROW)]).values()
    assert (cell.mean, cell.k, cell.questions) == (40.0, 8, 10)
    assert cell.error == pytest.approx(16.33, abs=0.01)  # of ten questions, not of eighty answers


def test_seeds_are_mean_and_standard_deviation(tmp_path):
    runs = [train(tmp_path / f"seed{i}") for i in range(3)]
    for run, value in zip(runs, (0.3, 0.4, 0.5), strict=True):
        evaluate(run / "eval", ALL | {"AIME24": value})
    (seeds,) = group([load_entry(run) for run in runs])
    found = cells(T1, seeds.entries)
    assert found["AIME24"].seeds == [30.0, 40.0, 50.0]
    assert (found["AIME24"].mean, found["AIME24"].error) == pytest.approx((40.0, 10.0))
    assert (found["Avg"].mean, found["Avg"].error) == pytest.approx((58.0, 2.0))
    assert line_of(table_lines(T1, [seeds])[1], ROW, "ours, 3 seeds")[1] == "40.0 ± 10.0"


def test_missing_cells_are_empty_and_named(tmp_path):
    run = train(tmp_path / "one")
    evaluate(run / "eval", {name: value for name, value in ALL.items() if name != "Minerva"})
    groups = group([load_entry(run)])
    ours = line_of(table_lines(T1, groups)[1], ROW, "ours")
    assert [bool(cell) for cell in ours] == [False, True, True, True, False, True]  # no average of four
    assert f"{ROW}: no result, left empty: Minerva ({MATHEMATICS['Minerva']})" in table_notes(T1, groups)
    found = next(row for row in table_json(T1, groups)["rows"] if row["row"] == ROW)
    assert found["missing"] == ["Avg", "Minerva"]
    assert set(found["difference"]) == {"AIME24", "MATH-500", "AMC23", "OlympiadBench"}


def test_a_seed_without_evaluation_leaves_the_others(tmp_path):
    runs = [train(tmp_path / f"seed{i}") for i in range(3)]
    evaluate(runs[0] / "eval", ALL)
    evaluate(runs[1] / "eval", {"AIME24": 0.6})
    groups = group([load_entry(run) for run in runs])
    found = cells(T1, groups[0].entries)
    assert found["Avg"].seeds == pytest.approx([58.0])
    assert found["AIME24"].seeds == [40.0, 60.0]
    counts = "Avg 1, AIME24 2, MATH-500 1, AMC23 1, Minerva 1, OlympiadBench 1"
    assert f"{ROW}: not all of its 3 runs have a result, but: {counts}" in table_notes(T1, groups)


def test_a_paper_cell_that_is_empty_has_no_difference(tmp_path):
    evaluate(tmp_path / "eval", ALL)
    groups = group([load_entry(tmp_path / "eval", "T2", "rStar-Math-7B")])
    _, lines = table_lines(TABLES["T2"], groups)
    assert line_of(lines, "rStar-Math-7B", "paper")[0] == "-"
    assert line_of(lines, "rStar-Math-7B", "difference")[0] == ""


def test_the_evaluation_stands_above_the_runs_own_validation(tmp_path):
    run = train(tmp_path / "rs1")
    own = {f"val-core/{MATHEMATICS[c].source}/acc/mean@1": 0.1 for c in ("AIME24", "AMC23")}
    (run / "metrics.jsonl").write_text(lines_of({0: own, 1: step_metrics(0.5) | own}))
    evaluate(run / "eval", {"AIME24": 0.4})
    found = cells(T1, [load_entry(run)])
    assert {column: cell.mean for column, cell in found.items()} == {"AIME24": 40.0, "AMC23": 10.0}


# --- the vision tables ----------------------------------------------------------------------------


def test_cv_benchs_total_counts_questions(tmp_path):
    evaluate(tmp_path / "eval", {"Count": 0.8, "Relation": 0.5, "Depth": 0.4, "Distance": 0.2}, table="T4")
    groups = group([load_entry(tmp_path / "eval", "T4", "+ GPG")])
    _, lines = table_lines(TABLES["T4"], groups)
    total = (788 * 80 + 650 * 50 + 600 * 40 + 600 * 20) / 2638
    assert line_of(lines, "+ GPG", "ours")[0].split(" ± ")[0] == f"{total:.2f}"
    assert line_of(lines, "+ GPG", "paper") == ["76.15", "66.62", "83.23", "81.66", "75.50"]
    assert line_of(lines, "+ GPG", "difference")[1] == "+13.38"
    assert "Count: pass@1 over 10 questions" in table_notes(TABLES["T4"], groups)


def boxes(folder: Path, ious: dict[str, list[float]], step: int = 0) -> Path:
    """A validation on LISA: the box IoU of each image's answer."""
    (folder / "validation").mkdir(parents=True)
    data, lines = {}, []
    for source, values in ious.items():
        right = [float(value >= 0.5) for value in values]
        data |= {f"val-core/{source}/acc/mean@1": sum(right) / len(right)}
        data |= {f"val-aux/{source}/box_iou/mean@1": sum(values) / len(values)}
        for i, (value, acc) in enumerate(zip(values, right, strict=True)):
            lines.append(answer(len(lines) + i, 0, acc, data_source=source, box_iou=value))
    (folder / "validation" / f"{step}.jsonl").write_text("".join(lines))
    (folder / "metrics.jsonl").write_text(lines_of({step: data}))
    return folder


def masks(folder: Path, **sources: dict[str, float]) -> None:
    """What gpg_verl.report.masks writes."""
    of = {f"{LISA}/{name}": {"step": 0, "images": 2, **values} for name, values in sources.items()}
    (folder / "masks.json").write_text(json.dumps({"segmenter": "tiny", "sources": of}))


def test_boxes_and_masks_are_told_apart(tmp_path):
    run = train(tmp_path / "run", row="+ GPG", table="T5")
    boxes(run / "eval", {f"{LISA}/test": [0.2, 0.6], f"{LISA}/val": [0.5, 0.5]})
    masks(
        run / "eval",
        test={"mask_giou": 0.3, "mask_giou_error": 0.1, "mask_ciou": 0.25},
        val={"mask_giou": 0.6, "mask_giou_error": None, "mask_ciou": 0.7},
    )
    groups = group([load_entry(run)])
    header, lines = table_lines(TABLES["T5"], groups)
    assert header == ["model", "", "mIoU test (boxes)", "mIoU val (boxes)", "gIoU test (masks)"]  # no average
    assert line_of(lines, "+ GPG", "ours") == ["40.0 ± 20.0", "50.0 ± 0.0", "30.0 ± 10.0"]
    assert line_of(lines, "+ GPG", "difference") == ["-11.8", "-1.3", "-20.4"]
    notes = table_notes(TABLES["T5"], groups)
    beside = "gIoU val (masks) 60.0, cIoU test (masks) 25.0, cIoU val (masks) 70.0"
    assert f"+ GPG: measured beside the paper's columns: {beside}" in notes
    assert "mIoU val (boxes): one answer a question over 2 questions" in notes
    assert any("mIoU is the mean IoU of boxes" in note for note in notes)
    (row,) = [row for row in table_json(TABLES["T5"], groups)["rows"] if row["row"] == "+ GPG"]
    assert row["beside"]["gIoU val (masks)"]["mean"] == pytest.approx(60.0)


def test_without_masks_their_column_is_empty(tmp_path):
    boxes(tmp_path / "eval", {f"{LISA}/test": [0.2, 0.6], f"{LISA}/val": [0.5, 0.5]})
    groups = group([load_entry(tmp_path / "eval", "T5", "+ GRPO")])
    assert line_of(table_lines(TABLES["T5"], groups)[1], "+ GRPO", "ours")[2] == ""
    assert f"+ GRPO: no result, left empty: gIoU test (masks) ({LISA}/test, mask_giou)" in table_notes(
        TABLES["T5"], groups
    )


def test_a_run_that_is_going_has_its_own_validation(tmp_path, capsys):
    """On LISA's val alone, no evaluation yet, the last line half written."""
    run = boxes(tmp_path / "run", {f"{LISA}/val": [0.2, 0.6]})
    (run / "run.json").write_text('{"table": "T5", "row": "+ GPG"}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write(lines_of({1: step_metrics(0.5)}) + '{"step": 2, "data": {"critic/sco')
    assert main([str(run), "--table", "T5"]) == 0
    out = capsys.readouterr().out
    assert "40.0 ± 20.0" in out
    assert "+ GPG: no result, left empty: mIoU test (boxes)" in out
    assert "steps 1 to 1" in out


def test_a_masks_file_of_someone_elses(tmp_path):
    boxes(tmp_path / "eval", {f"{LISA}/test": [0.2]})
    (tmp_path / "eval/masks.json").write_text("[]")
    with pytest.raises(ReportError, match=r"masks\.json: not what `python -m gpg_verl.report.masks` writes"):
        load_entry(tmp_path / "eval")


def test_four_runs_fill_a_row_of_classes(tmp_path):
    runs = [train(tmp_path / name, row="+ GPG", table="T6") for name in TABLES["T6"].columns]
    for run, value in zip(runs, (0.4, 0.6, 0.8, 1.0), strict=True):
        evaluate(run / "eval", {run.name: value}, table="T6")
    (row,) = group([load_entry(run) for run in runs])
    found = cells(TABLES["T6"], row.entries)
    assert {name: cell.mean for name, cell in found.items()} == pytest.approx(
        {"Avg": 70.0, "Flower102": 40.0, "Pets37": 60.0, "FGVC Aircraft": 80.0, "Cars196": 100.0}
    )
    assert found["Avg"].error == pytest.approx((16.33**2 + 16.33**2 + 13.33**2) ** 0.5 / 4, abs=0.01)
    assert line_of(table_lines(TABLES["T6"], [row])[1], "+ GPG", "ours")[0] == "70.0 ± 6.7"
    assert not any("not all of its" in note for note in table_notes(TABLES["T6"], [row]))
    three = cells(TABLES["T6"], row.entries[:3])
    assert "Avg" not in three


def test_seeds_of_a_row_of_classes(tmp_path):
    names = ["Flower102", "Flower102", *list(TABLES["T6"].columns)[1:]]
    runs = [train(tmp_path / f"{i}", row="+ GPG", table="T6") for i in range(5)]
    for run, name, value in zip(runs, names, (0.4, 0.6, 0.5, 0.5, 0.5), strict=True):
        evaluate(run / "eval", {name: value}, table="T6")
    (row,) = group([load_entry(run) for run in runs])
    ours = line_of(table_lines(TABLES["T6"], [row])[1], "+ GPG", "ours, 2 seeds")
    assert ours[1] == "50.0 ± 14.1"
    counts = "Pets37 1, FGVC Aircraft 1, Cars196 1"
    assert f"+ GPG: not all of its 2 runs have a result, but: {counts}" in table_notes(TABLES["T6"], [row])


def test_a_table_of_one_column_has_no_average(tmp_path):
    evaluate(tmp_path / "eval", {"GEOQA": 0.5}, table="T7")
    groups = group([load_entry(tmp_path / "eval", "T7", "+ GPG")])
    header, lines = table_lines(TABLES["T7"], groups)
    assert header == ["model", "", "GEOQA"]
    assert line_of(lines, "+ GPG", "difference") == ["-1.33"]


# --- the whole command ----------------------------------------------------------------------------


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
    assert "T1: 1.5B models" in out
    assert "GPG-RS3: evaluation left out:" in out
    assert f"{ROW} ({done}): steps 1 to 80" in out
    assert f"GPG-RS3 ({going}): steps 1 to 3" in out
    assert f"note: left out: {dead / 'metrics.jsonl'}, line 1: the file holds no complete line" in out
    folder = done / "report"
    assert_picture(folder / "curves.png")
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page)  # self-contained
    assert "&lt;b&gt;going" in page
    assert "<b>" not in page  # what a name holds is text
    for text in ("58.0 ± 6.5", "+2.3", "the last line is incomplete", "GPG-RS3"):
        assert text in page
    result = json.loads((folder / "report.json").read_text())
    assert [run["row"] for run in result["runs"]] == [ROW, "GPG-RS3"]
    assert result["runs"][0]["steps"]["2"]["gpg/alpha"] == 1.6
    row = next(row for row in result["tables"][0]["rows"] if row["row"] == ROW)
    assert row["ours"]["Avg"]["mean"] == pytest.approx(58.0)
    assert row["difference"]["MATH-500"] == pytest.approx(2.4)


def test_rows_named_on_the_command_line(tmp_path, capsys):
    runs = [str(evaluate(tmp_path / name, ALL)) for name in ("a", "b")]
    out = tmp_path / "out"
    assert main([*runs, "--table", "T1", "--row", "gpg-rs1", "--out", str(out)]) == 0
    assert "ours, 2 seeds" in capsys.readouterr().out
    assert main([*runs, "--table", "T1", "--row", "GPG-RS1", "--row", "GPG-RS3", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count(" ours  ") == 2
    assert sorted(file.name for file in out.iterdir()) == ["curves.png", "report.html", "report.json"]


def test_runs_of_no_table_are_compared_by_name(tmp_path, capsys):
    runs = [train(tmp_path / name, row=None) for name in ("gpg", "grpo")]
    assert main([str(run) for run in runs]) == 0
    assert "no run says which row" in capsys.readouterr().out
    result = json.loads((runs[0] / "report" / "report.json").read_text())
    assert result["tables"] == []
    assert [run["row"] for run in result["runs"]] == ["gpg", "grpo"]


def test_rows_side_by_side(tmp_path, capsys):
    """Three seeds of one method, one of them behind, and a method of one run that was never validated."""
    seeds = []
    for seed, (steps, last) in enumerate([(4, 0.6), (4, 0.8), (2, 0.7)]):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        held_out = {0: {ACCURACY: 0.1 * seed}, steps: step_metrics(0.1 * steps) | {ACCURACY: last}}
        logged = {s: step_metrics(0.1 * s, **{"timing_s/step": 10.0 + seed}) for s in range(1, steps)}
        (folder / "metrics.jsonl").write_text(lines_of({0: held_out[0], **logged, steps: held_out[steps]}))
        (folder / "run.json").write_text('{"row": "GPG"}')
        seeds.append(folder)
    other = train(tmp_path / "GRPO", row=None)
    header, rows = group_cells(group([load_entry(run) for run in [*seeds, other]]))
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert first == {
        "model": "GPG",
        "runs": "3",
        "steps": "2 to 4",
        "reward, last": "0.333 ± 0.115",  # 0.4, 0.4, 0.2
        "held-out, first": "0.100 ± 0.100",
        "last": "0.700 ± 0.100",
        "valid share": "0.62 ± 0.00",
        "s per step": "10.58 ± 0.52",  # 10, 10.75, 11: the last step took 10
    }
    assert (second["runs"], second["steps"], second["reward, last"]) == ("1", "3", "0.300")
    assert second["held-out, first"] == second["last"] == ""
    assert main([*map(str, seeds), str(other)]) == 0
    assert "side by side" in capsys.readouterr().out
    assert "0.333 ± 0.115" in (seeds[0] / "report/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}"], "missing: no metrics file here"),
        (["{run}", "--table", "T2"], "'GPG-RS1' is no row of T2"),
        (["{run}", "--row", "GPG-RS1"], "--row needs --table, one of T1, T2, T3"),
        (["{run}", "--table", "T1", "--row", "a", "--row", "b"], "--row is given 2 times for 1 runs"),
        (["{claims}"], 'run.json: expected {"table": "T1", "row": "GPG-RS1"}, with a table of T1, T2, T3'),
        (["{run}", "--out", "{file}"], "cannot make this folder"),
    ],
)
def test_errors(tmp_path, capsys, arguments, message):
    claims = train(tmp_path / "claims")
    (claims / "run.json").write_text('{"table": "T9"}')
    (tmp_path / "file").touch()
    places = {
        "run": train(tmp_path / "run"),
        "missing": tmp_path / "missing",
        "claims": claims,
        "file": tmp_path / "file",
    }
    assert main([argument.format(**places) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- tensorboard ----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["tensorboard", "tensorboard_log/project/experiment", "."])
def test_tensorboard_gives_what_the_file_logger_gives(below, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    steps = {0: {"val-core/openai/gsm8k/acc/mean@1": 0.25}, 1: step_metrics(0.5), 2: step_metrics(0.75)}
    folder = tmp_path / "run" / below
    for attempt in ({0: steps[0], 1: step_metrics(0.1), 2: step_metrics(0.2)}, {1: steps[1], 2: steps[2]}):
        writer = SummaryWriter(folder)  # as veRL's logger writes it; the second attempt resumes at step 1
        for step, values in attempt.items():
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.close()
    (newest,) = [file for file in folder.iterdir() if file == max(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns)]
    newest.write_bytes(newest.read_bytes()[:-5])  # a crash in the middle of a record
    run = load_run(tmp_path / "run")
    assert run.name == "run"
    assert run.column("critic/score/mean") == [0.5, 0.75]
    assert run.held_out[0].value == 0.25
    assert run.steps[1] == pytest.approx(steps[1])


def test_what_is_none_of_tensorboards_files_is_named(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    garbage = tmp_path / "events.out.tfevents.1.garbage"
    garbage.write_bytes(b"no record at all" * 9)
    with pytest.raises(ReportError, match=r"tfevents\.1\.garbage: no record of tensorboard's in it"):
        load_run(tmp_path)
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("critic/score/mean", 0.5, 1)
    run = load_run(tmp_path)
    assert run.column("critic/score/mean") == [0.5]
    assert run.notes == ["events.out.tfevents.1.garbage: no record of tensorboard's in it, so it was left out"]
