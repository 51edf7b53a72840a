"""The report: metrics files in, tables, plots and live progress out."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from gpg_verl.__main__ import main as package
from gpg_verl.report import ReportError
from gpg_verl.report.__main__ import main
from gpg_verl.report.runs import load_run
from gpg_verl.report.tables import held_out, summary, training
from gpg_verl.report.watch import STAGES, MetricsTail, Progress, error_message, stage

ROOT = Path(__file__).parents[1]
ACCURACY = "val-core/openai/gsm8k/acc/mean@1"


def step_metrics(reward: float, **more: float) -> dict[str, float]:
    return {
        "critic/score/mean": reward,
        "gpg/valid_share": 0.625,
        "gpg/alpha": 1.6,
        "response_length/mean": 210.25,
        "timing_s/gen": 6.0,
        "timing_s/update_actor": 3.0,
        "timing_s/update_weights": 0.5,
        "timing_s/step": 10.0,
        "actor/grad_norm": 0.1234,
        "actor/perf/cpu_memory_used_gb": 6.4,
    } | more


STEPS = {
    0: {ACCURACY: 0.2, "val-aux/num_turns/mean": 2.0},
    1: step_metrics(0.1),
    2: step_metrics(0.3, **{"timing_s/step": 12.0, "timing_s/save_checkpoint": 2.0, "timing_s/testing": 4.0}),
}
STEPS[2][ACCURACY] = 0.5


def lines_of(steps: dict[int, dict]) -> str:
    return "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in steps.items())


def write_run(folder: Path, steps: dict[int, dict], answers: int = 0, **claim: str) -> Path:
    """A run's folder; claim: the row that it says it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(lines_of(steps))
    if claim:
        (folder / "run.json").write_text(json.dumps(claim))
    for step, data in steps.items():
        if answers and any(name.startswith("val-core/") for name in data):
            dump = folder / "validation" / f"{step}.jsonl"
            dump.parent.mkdir(exist_ok=True)
            right = round(data[ACCURACY] * answers)
            dump.write_text("".join(answer(i, 0, float(i < right)) for i in range(answers)))
    return folder


def answer(question: int, number: int, score: float, **more: object) -> str:
    """A line of veRL's validation dump."""
    row = {"input": "1+1", "output": "2", "gts": "2", "score": score, "step": 0, "acc": score}
    return json.dumps(row | {"uid": f"{question:04d}_{number}_0"} | more) + "\n"


def table_of(run: Path) -> tuple[list[str], list[list[str]]]:
    table = training(load_run(run))
    return list(table.columns), table.values.tolist()


def test_training_table(tmp_path):
    header, rows = table_of(write_run(tmp_path, STEPS))
    assert header[:5] == ["step", "reward", "valid", "α", "length"]
    assert header[5:] == ["gen s", "update s", "weights s", "other s", "save s", "test s", "grad norm"]
    assert rows == [
        ["1", "0.100", "0.62", "1.60", "210.2", "6.00", "3.00", "0.50", "0.50", "", "", "0.123"],
        ["2", "0.300", "0.62", "1.60", "210.2", "6.00", "3.00", "0.50", "0.50", "2.00", "4.00", "0.123"],
    ]
    expected = "steps 1 to 2, reward 0.100 → 0.300, 11.00 s per step, machine memory in use up to 6.4 GB"
    assert summary(load_run(tmp_path)) == expected


@pytest.mark.parametrize(
    ("more", "columns", "cells"),
    [
        # a pass of other methods, where it takes time: of the 10 s the rest, and the pass
        ({"timing_s/old_log_prob": 0.25, "timing_s/ref": 1e-5}, ["other s", "old log-probs s"], ["0.25", "0.25"]),
        ({"timing_s/gen": 8.0}, ["weights s", "other s"], ["0.50", "0.00"]),  # stages that overlap
        (
            {"gpg/sessions_failed": 2.0, "gpg/groups_incomplete": 1.0, "gpg/prompts_truncated": 0.0},
            ["sessions failed", "groups incomplete", "prompts truncated"],
            ["2", "1", "0"],
        ),
    ],
)
def test_columns_of_some_runs(tmp_path, more, columns, cells):
    header, (row,) = table_of(write_run(tmp_path, {1: step_metrics(0.1, **more)}))
    start = header.index(columns[0])
    assert (header[start : start + len(columns)], row[start : start + len(columns)]) == (columns, cells)
    assert not {"reference s", "test s", "save s"} & set(header)


def test_held_out_before_and_after_with_standard_error(tmp_path):
    found = held_out(load_run(write_run(tmp_path, STEPS, answers=100)), "")
    row = ["openai/gsm8k", "accuracy", "0.200 ± 0.040 (step 0)", "0.500 ± 0.050 (step 2)", "+0.300", "100"]
    assert (found.table.values.tolist(), list(found.notes)) == ([row], [])


HALF = {(question, number): float(question < 50) for question in range(100) for number in range(4)}
MIXED = {(question, number): float(number < 2) for question in range(100) for number in range(4)}


@pytest.mark.parametrize(
    ("metrics", "answers", "more", "result"),
    [
        # answers to one question go together: 400 answers, but 100 questions
        ({"a/acc/mean@4": 0.5}, HALF, {}, (100, 0.0503)),
        ({"a/acc/mean@4": 0.5}, MIXED, {}, (100, 0.0)),
        # no acc: the reward, whatever its range
        ({"a/reward/mean@1": -0.5}, {(i, 0): -1.0 * (i % 2) for i in range(100)}, {}, (100, 0.0503)),
        # several data sources in one dump
        ({"a/acc/mean@4": 0.5, "b/acc/mean@4": 0.4}, HALF, {"data_source": "a"}, (100, 0.0503)),
        ({"a/acc/mean@4": 0.5, "b/acc/mean@4": 0.4}, HALF, {}, (None, None)),
        ({"a/acc/mean@4": 0.5}, {}, {}, (None, None)),
        ({"a/acc/mean@4": 0.6}, HALF, {}, (None, None)),  # not all answers, or others
        ({"a/acc/mean@1": 1.0}, {(0, 0): 1.0}, {}, (1, None)),
    ],
)
def test_held_out_standard_error(tmp_path, metrics, answers, more, result):
    run = write_run(tmp_path, {0: {f"val-core/{name}": value for name, value in metrics.items()}})
    if answers:
        (run / "validation").mkdir()
        lines = [answer(*key, score, **more) for key, score in answers.items()]
        (run / "validation" / "0.jsonl").write_text("".join(lines) + '{"cut off')
    run = load_run(run)
    found = run.held_out.replace({float("nan"): None}).iloc[0]
    assert (found.source, found.questions, found.error) == ("a", result[0], pytest.approx(result[1], abs=1e-4))
    section = held_out(run, "")
    _, _, before, *rest = section.table.values.tolist()[0]
    assert ("±" in before, rest) == (result[1] is not None, ["", "", str(result[0] or "")])
    bare = "held-out without standard error at step 0: it takes all answers to two questions or more. Set trainer."
    assert any(bare in note for note in section.notes) is (result[1] is None or len(metrics) > 1)


def test_missing_metrics_are_empty_and_named(tmp_path, capsys):
    steps = {
        1: {"critic/score/mean": 0.5, "timing_s/step": 3.0},
        2: {"critic/score/mean": float("inf"), "actor/grad_norm": None, "actor/loss": 1.0},
    }
    run = write_run(tmp_path, steps)
    assert table_of(run)[1] == [["1", "0.500", "", "", "", "", "", "", "3.00", ""], ["2", *[""] * 9]]
    missing, validated = held_out(load_run(run), "").notes
    assert missing.startswith("not logged, left empty: gpg/valid_share, gpg/alpha, response_length/mean, timing_s/")
    assert "no held-out accuracy logged" in validated
    assert main(["show", str(write_run(tmp_path, {0: STEPS[0]}))]) == 0
    assert "no training step" in capsys.readouterr().out


FOUR = lines_of({s: step_metrics(0.1 * s) for s in (1, 2, 3, 4)})
MERGED = "merged, the later file wins: metrics.1.jsonl, metrics.jsonl"


@pytest.mark.parametrize(
    ("earlier", "later", "rewards", "validated", "notes"),
    [
        # stopped after step 4, it resumes from its checkpoint of step 2: steps 3 and 4 never counted
        (FOUR, lines_of({2: {ACCURACY: 0.4}, 3: step_metrics(0.9)}), [0.1, 0.2, 0.9], [[2, 0.4]], [MERGED]),
        # started again, with another learning rate say, into the same file
        (
            "",
            FOUR + lines_of({s: step_metrics(0.2 * s) for s in (1, 2)}),
            [0.2, 0.4],
            [],
            ["metrics.jsonl: 2 starts in one file, the later one wins"],
        ),
        (FOUR, "", [0.1, 0.2, 0.3, 0.4], [], [MERGED]),  # it has not logged yet
        (
            "",
            FOUR + lines_of({4: {ACCURACY: 0.4}}) + '{"step": 5, "da',  # a step may have two lines
            [0.1, 0.2, 0.3, 0.4],
            [[4, 0.4]],
            ["metrics.jsonl: the last line is incomplete and was left out"],
        ),
    ],
)
def test_the_later_start_wins(tmp_path, earlier, later, rewards, validated, notes):
    if earlier:
        (tmp_path / "metrics.1.jsonl").write_text(earlier)
        os.utime(tmp_path / "metrics.1.jsonl", (1, 1))
    (tmp_path / "metrics.jsonl").write_text(later)
    run = load_run(tmp_path)
    assert run.column("critic/score/mean").tolist() == pytest.approx(rewards)
    assert list(run.steps.index) == list(range(1, len(rewards) + 1))
    assert (run.held_out[["step", "value"]].values.tolist(), run.notes) == (validated, notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "metrics.jsonl: it holds no complete step"),
        ('{"step": 1, "da', "metrics.jsonl: it holds no complete step"),
        ("step 1 reward 0.5\n", "metrics.jsonl, line 1: b'step 1 reward"),
        ('{"step": 1, "data": {}}\n[1]\n', "metrics.jsonl, line 2: b'[1]"),
        ('{"step": 1, "loss": 0.5}\n', "(KeyError: 'data')"),
        (b"\xff\xfe\n", "metrics.jsonl, line 1: b'\\xff"),
    ],
)
def test_malformed_file_is_one_clear_error(tmp_path, capsys, content, message):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["show", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Expected" in error
    assert error.count("\n") == 1


def test_what_cannot_be_read_says_what_is_expected(tmp_path):
    run = write_run(tmp_path / "run", STEPS, answers=3)
    (run / "validation" / "2.jsonl").write_text(answer(0, 0, 1.0) + "oops\n")
    with pytest.raises(ReportError, match=r"2\.jsonl, line 2: b'oops.*Expected an answer with uid"):
        load_run(run)
    for path in (tmp_path, tmp_path / "metrics.jsonl", tmp_path / "no-such-run"):
        with pytest.raises(ReportError, match=r"VERL_FILE_LOGGER_PATH=\S+/metrics\.jsonl\.$"):
            load_run(path)


def assert_picture(path: Path) -> None:
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[:2] == (1920, 1440)
    assert pixels[..., :3].std() > 0.1


def test_show(tmp_path, capsys):
    runs = [write_run(tmp_path / seed / "gpg", STEPS, answers=100) for seed in ("seed1", "seed2")]
    assert main(["show", str(runs[0])]) == 0
    out = capsys.readouterr().out
    assert "0.200 ± 0.040 (step 0)" in out  # whole, however narrow the terminal
    assert f"plot: {runs[0] / 'plot.png'}" in out
    assert_picture(runs[0] / "plot.png")
    assert main(["show", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert all(f"{run}: training" in out for run in runs)  # the same folder name: told apart by path
    assert_picture(runs[0] / "comparison.png")
    assert main(["show", str(runs[0]), "--plot", str(tmp_path / "plot.words")]) == 1
    assert "--plot FILE" in capsys.readouterr().err


def test_the_package_says_where_the_report_is(capsys):
    with pytest.raises(SystemExit):
        package(["report", "show", "runs/a"])
    assert "python -m gpg_verl.report show runs/a" in capsys.readouterr().err


def test_knows_nothing_of_training():
    code = (
        "import sys, gpg_verl.report.__main__ as m; "
        "sys.exit(', '.join({'verl', 'torch', 'ray', 'vllm', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_progress_line():
    progress = Progress(total=10)
    assert progress.describe(0, STEPS[0]) == "step 0/10  held-out 0.200"
    assert progress.describe(1, STEPS[1]) == "step 1/10  reward 0.10  valid 0.62  α 1.60  10.0 s/step  0:01:30 left"
    assert progress.describe(2, STEPS[2]).endswith("12.0 s/step  0:01:44 left  held-out 0.500")


def test_the_stage_of_a_start_is_told_by_its_log(tmp_path):
    text, seen = "", []
    for line in STAGES:
        text += line
        (tmp_path / "log").write_text(text)
        seen.append(stage(tmp_path / "log"))
        text += " and more\n"
    assert seen == list(STAGES.values())
    (tmp_path / "log").write_text(text + "ray init kwargs: said by somebody else\n")
    assert stage(tmp_path / "log") == "first step"


@pytest.mark.parametrize("line", [line for line in STAGES if line])
def test_the_lines_that_tell_a_stage_are_veRLs_and_Rays(line):
    verl, ray = (Path(find_spec(name).origin).parent for name in ("verl", "ray"))
    files = [verl / "trainer/main_ppo.py", verl / "trainer/ppo/v1/trainer_base.py", ray / "_private/worker.py"]
    text = "".join(file.read_text() for file in files)
    assert line.rstrip(":") in text


def test_tail_skips_an_earlier_run_and_follows_truncation(tmp_path):
    file = write_run(tmp_path, {1: STEPS[1], 2: STEPS[2]}) / "metrics.jsonl"
    os.utime(file, (1, 1))
    tail = MetricsTail(file)
    assert tail.new_lines() == []
    with file.open("wb", buffering=0) as logger:  # as veRL's file logger opens it
        assert tail.new_lines() == []
        logger.write(b'{"step": 7, "data": {"a": 1}}\n{"step": 8, ')
        assert tail.new_lines() == [(7, {"a": 1.0})]
        logger.write(b'"data": {}}\n')
        assert tail.new_lines() == [(8, {})]
    file.write_text('{"step": 9, "data": {}}\n')
    assert tail.new_lines() == [(9, {})]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        # the run's own last words, whatever its workers say in between and afterwards
        ("ok\n\x1b[36m(TaskRunner pid=77)\x1b[0m bye\nOSError: full\n(raylet) end\n\n", ["ok", "OSError: full"]),
        ("\n".join(f"line {i}" for i in range(50)), [f"line {i}" for i in range(20, 50)]),
        ("(a pid=1) OSError: full", ["(a pid=1) OSError: full"]),
        ("", []),
    ],
)
def test_error_message(tmp_path, log, expected):
    file = tmp_path / "train.log"
    file.write_text(log)
    assert error_message(file) == expected


TRAIN = f"""
import json, sys, time
print("Ray starts", flush=True)
steps = json.loads({json.dumps(json.dumps(STEPS))})
with open(sys.argv[1], "wb", buffering=0) as file:
    for step, data in steps.items():
        file.write(json.dumps({{"step": int(step), "data": data}}).encode() + b"\\n")
        time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def no_metrics_path_from_outside(monkeypatch):
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)


def watch(run: Path, code: str, *options: str, file: str = "metrics.jsonl") -> list[str]:
    command = [sys.executable, "-I", "-S", "-c", code, str(run / file)]
    return ["watch", str(run), "--log", str(run / "logs" / "train.log"), *options, "--", *command]


@pytest.mark.parametrize("file", ["metrics.jsonl", "metrics-2.jsonl"])
def test_watch_a_run_to_its_end(tmp_path, capsys, monkeypatch, file):
    write_run(tmp_path, {99: step_metrics(0.9)})  # an earlier run's
    if file != "metrics.jsonl":  # a recipe keeps one file per start, as veRL empties the one it opens
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / file))
    assert main(watch(tmp_path, TRAIN, "--steps", "2", file=file)) == 0
    first, *steps = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert first == STAGES[""]
    assert [line.split("  ")[0] for line in steps] == ["step 0/2", "step 1/2", "step 2/2"]
    assert steps[2].endswith("0:00:00 left  held-out 0.500")
    assert (tmp_path / "logs" / "train.log").read_text() == "Ray starts\n"


FAILS = "import sys; print('OSError: disk full'); sys.exit(3)"


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (FAILS, 3, ["exit code 3", "    OSError: disk full\n", "the whole log: {run}/logs/train.log"]),
        ("", 0, ["wrote no step to {run}/metrics.jsonl", "VERL_FILE_LOGGER_PATH={run}/metrics.jsonl"]),
    ],
)
def test_watch_tells_how_a_command_ended(tmp_path, capsys, code, exit_code, said):
    assert main(watch(tmp_path, code)) == exit_code
    out = capsys.readouterr().out
    assert [part for part in said if part.format(run=tmp_path) not in out] == []


def test_watch_needs_a_command_that_exists(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--log", str(tmp_path / "log"), "--", "no-such-program"]) == 1
    assert "no-such-program: cannot run it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["watch", str(tmp_path), "--log", str(tmp_path / "log")])


# A command with a worker; both note their process ids.
WITH_WORKER = """
import os, pathlib, signal, subprocess, sys, time
{setup}
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal, time; {worker}; time.sleep(60)"])
time.sleep(0.2)
pathlib.Path(sys.argv[1]).with_name("pids").write_text(f"{{os.getpid()}} {{worker.pid}} ")
time.sleep(60)
"""
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("sent", "setup", "worker", "code"),
    [
        (signal.SIGTERM, "", "pass", 128 + signal.SIGTERM),
        (signal.SIGINT, "signal.signal(signal.SIGINT, lambda *_: sys.exit(5))", "pass", 5),
        (signal.SIGTERM, IGNORE, IGNORE, 128 + signal.SIGKILL),  # after the grace period
    ],
)
def test_watch_leaves_no_orphan(tmp_path, sent, setup, worker, code):
    args = watch(tmp_path, WITH_WORKER.format(setup=setup, worker=worker))
    # SIGINT may have been ignored by whatever started the tests.
    start = (
        "import signal, sys, pathlib; from gpg_verl.report.watch import watch; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.exit(watch(pathlib.Path({args[1]!r}), pathlib.Path({args[3]!r}), {args[5:]!r}, grace=0.5))"
    )
    watcher = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    note = tmp_path / "pids"
    while not (note.exists() and note.read_text().endswith(" ")):
        assert watcher.poll() is None
        time.sleep(0.02)
    both = [psutil.Process(int(pid)) for pid in note.read_text().split()]
    watcher.send_signal(sent)
    out, _ = watcher.communicate(timeout=15)
    assert watcher.returncode == code
    assert f"stopped by {sent.name}" in out
    time.sleep(0.5)
    assert [process for process in both if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_watch_shows_a_bar_on_a_terminal(tmp_path):
    terminal, child_side = os.openpty()
    env = os.environ | {"CI": "", "TERM": "xterm", "COLUMNS": "150"}
    command = [sys.executable, "-m", "gpg_verl.report", *watch(tmp_path, TRAIN, "--steps", "2")]
    watcher = subprocess.Popen(command, cwd=ROOT, stdout=child_side, env=env)
    os.close(child_side)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(terminal)
    assert watcher.wait() == 0
    text = shown.decode()
    assert STAGES[""] in text
    assert "━" in text
    assert "step 2/2  reward 0.30" in text
