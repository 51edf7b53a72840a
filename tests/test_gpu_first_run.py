"""examples/gpu_first_run.sh up to where the GPU begins: its commands, its one line without a GPU, its page, and the
measurement of the gradient, on this machine's CPU.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import gpu_first_run as page
import pytest
from conftest import run_bash, run_python

ROOT = Path(__file__).parents[1]


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return run_bash("examples/gpu_first_run.sh", *arguments, apart=True, **variables)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("", ["torch finds no GPU on this machine", "examples/quickstart.sh"]),
        ("GPU 0: NVIDIA H100 (UUID: x)", ["nvidia-smi finds GPU 0: NVIDIA H100 (UUID: x), torch ", "driver too old"]),
    ],
)
def test_without_a_gpu_one_line_says_so(tmp_path, seen, said):
    """Or with one that torch does not find: an old driver beside a new torch, or a torch for CPUs."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{seen}'\necho 'GPU 1: another'\n[ '{seen}' ]\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = script(PATH=path, OUT=str(tmp_path / "out"), CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert [text for text in said if text not in line] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "model", "said"),
    [
        ((), None, []),
        (("gguf",), None, ["pip install gguf"]),
        (("gguf",), "a/folder", []),
        (("matplotlib",), "a/folder", ["pip install matplotlib"]),
        (("vllm",), "a/folder", ["vllm is not installed"]),
        (("registration",), "a/folder", ["estimator gpg is veRL's"]),
    ],
)
def test_what_is_lacking_is_said_before_the_runs(monkeypatch, tmp_path, capsys, missing, model, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "importable", lambda module: module not in missing)
    monkeypatch.setattr(page, "attention", lambda: "sdpa")
    monkeypatch.setattr(
        page.versions, "problem", lambda package: "vllm is not installed" if "vllm" in missing else None
    )
    wrong = ["estimator gpg is veRL's"] if "registration" in missing else []
    monkeypatch.setattr("gpg_verl.launch.doctor.registrations", lambda: ([], wrong))
    assert page.look(model) == bool(said)
    seen = capsys.readouterr()
    assert seen.out == ("" if said else "sdpa\n")
    assert [text for text in said if text not in seen.err] == []


@pytest.mark.parametrize(
    ("installed", "code", "expected"),
    [
        (None, "", "sdpa"),
        ("2.8.3", "", "flash_attention_2"),
        ("2.8.3", "raise ImportError('undefined symbol')", "sdpa"),
    ],
)
def test_the_attention_is_one_that_loads(monkeypatch, tmp_path, capsys, installed, code, expected):
    (tmp_path / "flash_attn.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(page, "installed", lambda distribution: installed)
    assert page.attention() == expected
    assert ("undefined symbol" in capsys.readouterr().err) == bool(code)
    sys.modules.pop("flash_attn", None)


@pytest.mark.parametrize(("variable", "value"), [("STEPS", "0"), ("N", "x"), ("PY", "/no/such/python")])
def test_a_variable_that_is_wrong_is_named_in_one_line(variable, value):
    done = script(**{variable: value})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{variable}={value}" in line


def commands(*arguments: str, **variables: str) -> list[list[str]]:
    printed = script(*arguments, DRY_RUN="1", **variables).stdout.replace("\\\n", " ")
    return [shlex.split(line)[3:] for line in printed.splitlines()]


def test_every_run_composes_and_differs_in_its_method_alone(tmp_path):
    import verl  # noqa: F401

    from gpg_verl.launch.check import compose
    from gpg_verl.launch.preflight import look, validate

    setting = "actor_rollout_ref.rollout.enforce_eager=True"
    found = commands(setting, OUT=str(tmp_path), MODEL=str(tmp_path / "model"))
    assert len(found) == len(page.RUNS)
    common = set.intersection(*map(set, found))
    assert setting in common
    for overrides, name in zip(found, page.RUNS, strict=True):
        own = [o for o in overrides if o not in common and str(tmp_path / name) not in o]
        assert all(o.startswith(("algorithm.", "+algorithm.gpg.", "actor_rollout_ref.actor.")) for o in own), own
        config = compose(overrides)
        if name in ("gpg", "rows"):  # the others run without this package
            assert look(config, overrides).contradictions == []
        validate(config)
        actor = config.actor_rollout_ref
        assert (actor.actor.strategy, actor.model.use_remove_padding) == ("fsdp", True)  # veRL's defaults
    assert len(commands(RUNS="gpg")) == 1


# ---- the page


def make_run(folder: Path, name: str, steps: int = 4, **metrics: float) -> None:
    (folder / name).mkdir()
    (folder / name / "run.json").write_text(json.dumps({"row": page.RUNS[name]}))
    with (folder / name / "metrics.jsonl").open("w") as lines:
        for step in range(1, steps + 1):
            data = {
                "critic/score/mean": 0.3 + 0.1 * step,
                "timing_s/step": 100.0 if step <= page.WARM_UP else 2.0,
                "timing_s/gen": 1.0,
                "timing_s/update_actor": 0.5,
                page.AGREE: 0.004,
                page.MEMORY: 3.0,
                page.SHARED: 900.0 if name == "gpg" else 0.0,
                **metrics,
            }
            print(json.dumps({"step": step, "data": data}), file=lines)


def make_gradient(folder: Path, **changed) -> None:
    rows = [
        {"precision": precision, "passes": passes, "in_force": True, "why_not": None}
        | {"difference": 3e-7 if precision == "fp32" else 7e-3, "again": 0.0, "norm": 1.0}
        | changed
        for precision in ("fp32", "bf16")
        for passes in ("trees", "rows")
    ]
    (folder / "gradient.json").write_text(json.dumps({"device": "a card", "torch": "2.11.0", "rows": rows}))


def make_shapes(folder: Path, norms: tuple[float, ...] = (0.5, 0.5, 2.0)) -> None:
    """As step.py writes them; prefixes shared take half of the time that rows take, veRL's gpg twice that of rows."""
    contenders = {
        name: {"grad_norm": norm, "tokens_shared": 30, "seconds": [seconds, seconds, 100.0]}
        for name, norm, seconds in zip(page.WAYS, norms, (1.0, 2.0, 4.0), strict=True)
    }
    shapes = [{"shape": "gsm8k", "precision": p, "tokens": 120, "contenders": contenders} for p in ("bf16", "fp32")]
    (folder / "shapes.json").write_text(json.dumps(shapes))


def judged(folder: Path) -> list[str]:
    """What is not as it should be."""
    good = page.write(folder, steps=4, attention="sdpa", asked=["gsm8k"])
    whole = json.loads((folder / "first_run.json").read_text())
    wrong = [verdict["seen"] for verdict in whole["verdicts"] if not verdict["right"]]
    assert good == whole["as_it_should_be"] == (not wrong)
    text = (folder / "page.html").read_text()
    assert ("All is as it should be" in text) == good
    return wrong


def test_a_good_run(tmp_path, capsys):
    for name, seconds in (("gpg", 2.0), ("rows", 2.5), ("verl_gpg", 4.0), ("grpo_kl", 5.0)):
        make_run(tmp_path, name, **{"timing_s/step": seconds})
    make_gradient(tmp_path)
    make_shapes(tmp_path)
    assert judged(tmp_path) == []
    text = "".join(map(str.strip, (tmp_path / "page.html").read_text().splitlines()))
    fastest = "gsm8k rows in fp32: prefixes shared is the fastest on this card"
    ratios = "<td>1</td><td>2</td><td>4</td><td>0.5</td><td>0.25</td><td>25%</td>"
    for part in ("veRL&#x27;s gpg", "<td>2.5</td>", "attention sdpa", "data:image/png;base64,", fastest, ratios):
        assert part in text
    whole = json.loads((tmp_path / "first_run.json").read_text())
    assert whole["runs"]["verl_gpg"]["step_s"] == 4.0
    assert whole["runs"]["gpg"]["step_s"] == 2.0  # of the steps that are warm
    assert {"verl", "vllm", "torch", "flash-attn"} <= whole["machine"]["packages"].keys()
    assert str(tmp_path / "page.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"metrics": {"critic/score/mean": 0.4}}, "it learns"),
        ({"metrics": {page.AGREE: 0.3}}, "trainer and rollout agree"),
        ({"metrics": {page.SHARED: 0.0}}, "prefixes are shared"),
        ({"gradient": {"difference": 0.5}}, "5.0e-01 from the definition"),
        ({"gradient": {"in_force": False, "why_not": "the engine is another"}}, "the engine is another"),
        ({"gradient": None}, "was not measured"),
        ({"norms": (float("nan"), 0.5, 2.0)}, "norm is nan prefixes shared"),
        ({"norms": (0.5, 0.5, float("nan"))}, "nan veRL's gpg"),
        ({"norms": (0.53, 0.5, 2.0)}, "0.53 prefixes shared, 0.5 row by row"),
        ({"norms": None}, "gsm8k rows in "),
        ({"steps": 3}, "3 of 4 steps"),
    ],
)
def test_what_is_not_as_it_should_be(tmp_path, changed, wrong):
    of = {"metrics": {}, "gradient": {}, "norms": (0.5, 0.5, 2.0), "steps": 4} | changed
    make_run(tmp_path, "gpg", of["steps"], **of["metrics"])
    if of["gradient"] is not None:
        make_gradient(tmp_path, **of["gradient"])
    if of["norms"]:
        make_shapes(tmp_path, of["norms"])
    found = judged(tmp_path)
    assert found
    assert all(wrong in seen for seen in found)


def test_a_run_that_logged_nothing_has_its_line(tmp_path):
    make_run(tmp_path, "gpg")
    (tmp_path / "grpo_kl").mkdir()
    log = "Traceback (most recent call last):\n  File x\nRuntimeError: no kernel image <is> available\n"
    (tmp_path / "grpo_kl/verl.log").write_text(log)
    make_gradient(tmp_path)
    make_shapes(tmp_path)
    assert judged(tmp_path) == ["veRL's grpo with KL: 0 of 4 steps"]
    whole = json.loads((tmp_path / "first_run.json").read_text())
    assert whole["errors"] == {"veRL's grpo with KL": log.splitlines()}
    assert "no kernel image &lt;is&gt; available" in (tmp_path / "page.html").read_text()


def test_another_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match="expected gpg or rows"):
        page.write(tmp_path, steps=4, attention="sdpa", asked=[])


@pytest.mark.real_run
def test_the_gradient_is_measured(tmp_path):
    file = tmp_path / "gradient.json"
    done = run_python(str(ROOT / "examples/benchmark/gradient.py"), "--seeds", "1", "--json", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [(row["precision"], row["passes"]) for row in rows] == [
        (precision, passes) for precision in ("fp32", "bf16") for passes in ("trees", "rows")
    ]
    for row in rows:
        assert row["in_force"], row
        assert row["difference"] <= (1e-6 if row["precision"] == "fp32" else 0.05)


@pytest.mark.real_run
def test_shapes_are_measured(tmp_path):
    file, rows = tmp_path / "shapes.json", ["--shapes", "sums", "--groups", "1", "--shares", "1"]
    small = [*rows, "--pairs", "1", "--max-tokens", "1024", "--json", str(file), "--contenders", *page.WAYS]
    done = run_python(str(ROOT / "examples/benchmark/step.py"), *small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    shapes = json.loads(file.read_text())
    assert [right for right, _ in page.shape_verdicts(shapes, [])] == [True]
    flops = [of["flops"] for of in shapes[0]["contenders"].values()]
    assert flops == sorted(flops)
    assert flops[0] < 0.5 * flops[1]
    table, (fastest,) = page.shape_table(shapes)
    ((*line, shared),) = table.to_numpy().tolist()
    assert line[:2] == ["sums", "fp32"]
    assert fastest.startswith("sums rows in fp32: ")
    assert shared != "0%"
