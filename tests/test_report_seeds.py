"""The report on several methods with several seeds: means with intervals, paired tests, one picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import ACCURACY, lines_of, step_metrics

from gpg_verl.report.__main__ import main
from gpg_verl.report.compare import group, load_entry
from gpg_verl.report.metrics import REWARD, load_run
from gpg_verl.report.seeds import (
    compare,
    compared_cells,
    compared_notes,
    held_out_points,
    mean_between,
    mean_curve,
    responses,
    seed_of,
    spent,
)

GPG = {"gpg/B": 64.0, "gpg/groups": 8.0}
GRPO = {"perf/total_num_tokens": 64 * 30.0, "prompt_length/mean": 20.0, "response_length/mean": 10.0}


def write(folder: Path, row: str, rewards: list[float], seconds: float = 10.0, held_out=True, **more: float) -> Path:
    """A run of a method: a step for each reward, a validation before, and after each, that tells the same."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"row": row}))
    steps = {0: {ACCURACY: 0.0}} if held_out else {}
    for step, reward in enumerate(rewards, 1):
        steps[step] = {REWARD: reward, "timing_s/step": seconds} | more
        if held_out:
            steps[step][ACCURACY] = reward
    (folder / "metrics.jsonl").write_text(lines_of(steps))
    return folder


def three_seeds(tmp_path: Path, **more: float) -> list[Path]:
    runs = []
    for seed, luck in enumerate((0.0, 0.1, 0.3), 1):
        runs.append(write(tmp_path / f"gpg-seed{seed}", "GPG", [0.2 + luck, 0.4 + luck], **GPG, **more))
        runs.append(write(tmp_path / f"grpo-seed{seed}", "GRPO", [0.1 + luck, 0.2 + luck + seed / 100], 20.0, **GRPO))
    return runs


def compared(runs: list[Path]):
    return compare(group([load_entry(run) for run in runs]))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (GPG, 64),
        (GPG | {"gpg/prompts_generated": 20.0}, 160),  # β_th: 20 prompts for a batch of 8
        (GRPO, 64),
        ({"gpg/B": 0.0, "gpg/groups": 0.0} | GRPO, 64),
        (step_metrics(0.1), None),
    ],
)
def test_responses_of_a_step(values, found):
    assert responses(values) == found


@pytest.mark.parametrize(
    ("path", "seed"), [("gpg-seed3", 3), ("seed2/gpg", 2), ("gpg_SEED=4", 4), ("gpg", None), ("seedling", None)]
)
def test_the_seed_is_in_the_folders_name(tmp_path, path, seed):
    assert seed_of(load_run(write(tmp_path / path, "GPG", [0.1]))) == seed


def test_spent_until_the_end_of_each_step(tmp_path):
    run = load_run(write(tmp_path / "a", "GPG", [0.1, 0.2], **GPG))
    assert spent(run, "step") == {0: 0, 1: 1, 2: 2}
    assert spent(run, "responses") == {0: 0, 1: 64, 2: 128}
    assert spent(run, "seconds") == pytest.approx({0: 0, 1: 10, 2: 20})
    assert held_out_points(run, "responses") == [(0, 0.0), (64, 0.1), (128, 0.2)]
    assert spent(load_run(write(tmp_path / "b", "GPG", [0.1])), "responses") == {}


@pytest.mark.parametrize(
    ("start", "end", "mean"), [(0, 2, 0.75), (0, 1, 0.5), (1, 2, 1.0), (0.5, 1.5, 0.875), (1, 1, 1)]
)
def test_mean_on_straight_lines(start, end, mean):
    assert mean_between([(0, 0.0), (1, 1.0), (2, 1.0)], start, end) == pytest.approx(mean)


def test_methods_are_compared_seed_by_seed(tmp_path):
    found = compared(three_seeds(tmp_path))
    assert found.measure == "held-out result"
    # GPG's mean over steps 0 to 2: (0 + r1)/2 and (r1 + r2)/2, over two.
    assert found.means["GPG", "step"].mean == pytest.approx(0.2 + 0.75 * 0.4 / 3)
    of_step = next(c for c in found.comparisons if c.axis == "step")
    assert (of_step.label, of_step.against, of_step.seeds) == ("GRPO", "GPG", [1, 2, 3])
    assert of_step.difference.mean == pytest.approx(-0.1 + 0.02 / 4)
    assert of_step.difference.half == pytest.approx(4.3027 * 0.0025 / 3**0.5, abs=1e-5)  # luck is the pair's
    assert of_step.p < of_step.p_holm < 0.05
    assert {c.axis for c in found.comparisons} == {"step", "responses", "seconds"}
    # GRPO's step takes twice the time: what is compared ends with GPG's last second.
    assert "by second: the mean from 0 to 20" in found.notes
    header, rows = compared_cells(found)
    assert header[:5] == ["model", "runs", "by step", "difference", "p"]
    assert rows[0][:5] == ["GPG", "3", "0.300 ± 0.285", "", ""]
    assert rows[1][3] == "-0.095 ± 0.006"
    *_, how, power, beyond = compared_notes(found)
    assert "Holm's correction for the 3 comparisons" in how
    assert power.startswith("could be seen, with power 0.8 and for the smallest p: by step 0.0")
    assert beyond.startswith("beyond noise: GRPO by step -0.095; ")


def test_inside_the_noise_nothing_is_called_different(tmp_path):
    runs = []
    for seed, shift in enumerate((0.1, -0.1, 0.05), 1):
        runs.append(write(tmp_path / f"a-seed{seed}", "A", [0.5, 0.5], **GPG))
        runs.append(write(tmp_path / f"b-seed{seed}", "B", [0.5 + shift, 0.5 + shift], **GPG))
    assert compared_notes(compared(runs))[-1] == "beyond noise: no difference in this table"


@pytest.mark.parametrize("names", [("a-{}", "b-{}"), ("a-seed{}", "b-seed1{}")])
def test_no_pairs_no_test(tmp_path, names):
    runs = [write(tmp_path / n.format(i), n[0], [0.1, 0.2], **GPG) for n in names for i in (1, 2)]
    found = compared(runs)
    assert found.comparisons == []
    assert "b: fewer than two seeds that a has too, so no paired test" in found.notes


def test_without_validations_the_training_reward_is_compared(tmp_path):
    more = {"gpg/prompts_refilled": 4.0, "gpg/prompts_generated": 12.0}
    runs = [
        write(tmp_path / f"{m}-seed{i}", m, [0.1, 0.2], held_out=False, **GPG, **more) for m in "ab" for i in (1, 2)
    ]
    found = compared(runs)
    assert found.measure == "training reward"
    assert any("chosen groups" in note for note in found.notes)


def test_an_axis_that_a_run_did_not_log_is_named(tmp_path):
    runs = [write(tmp_path / f"{m}-seed{i}", m, [0.1, 0.2]) for m in "ab" for i in (1, 2)]
    found = compared(runs)
    assert {c.axis for c in found.comparisons} == {"step", "seconds"}
    assert "not compared by response generated: not every run logged it" in found.notes


def test_mean_curve_where_all_runs_are(tmp_path):
    runs = [load_run(write(tmp_path / str(i), "A", [0.1 * i] * (i + 1), **GPG)) for i in (1, 2)]
    curve = mean_curve(runs, "training reward", "responses")
    assert [x for x, _ in curve] == [64, 128]
    assert [mean.mean for _, mean in curve] == pytest.approx([0.15, 0.15])


def test_report_on_methods_and_seeds(tmp_path, capsys):
    runs = three_seeds(tmp_path)
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "held-out result, mean over the run" in out
    assert "-0.095 ± 0.006" in out
    assert str(tmp_path / "out/seeds.png") in out
    assert "Methods compared" in (tmp_path / "out/report.html").read_text()
    assert len(json.loads((tmp_path / "out/report.json").read_text())["compared"]["comparisons"]) == 3


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(0, 2), slice(0, 6, 2)])
def test_one_run_or_one_method_has_todays_pictures(tmp_path, capsys, chosen):
    runs = three_seeds(tmp_path)[chosen]
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.html", "curves.png", "report.json"}
    assert "seeds.png" not in capsys.readouterr().out
