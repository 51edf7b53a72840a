"""What a first run on a GPU needs, and its page: verdict, table, curves, and the same as JSON.

    python examples/gpu_first_run.py look
    python examples/gpu_first_run.py page runs/gpu_first_run/20260101-120000 --steps 10 --attention sdpa

`look` names what the runs need and is not here, and prints the attention that is. `page` reads what
examples/gpu_first_run.sh left in the folder (runs, gradient.json, shapes.json); writes page.html, plot.png and
first_run.json there. Exit code 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import html
import importlib
import itertools
import json
import math
import shutil
import statistics
import sys
from pathlib import Path

import pandas as pd

from gpg_verl.compat import versions
from gpg_verl.launch.machine import importable, installed
from gpg_verl.report import ReportError
from gpg_verl.report.draw import curves, head, html_picture, html_section
from gpg_verl.report.runs import REWARD, STEP_SECONDS, Run, load_run
from gpg_verl.report.tables import Section, group
from gpg_verl.report.watch import error_message

RUNS = {
    "gpg": "gpg-verl",
    "rows": "gpg-verl, prefixes not shared",
    "verl_gpg": "veRL's gpg",
    "grpo_kl": "veRL's grpo with KL",
}
PARTS = ("gen", "old_log_prob", "ref", "update_actor", "update_weights")
WAYS = {"gpg_verl": "prefixes shared", "row by row": "row by row", "veRL gpg": "veRL's gpg"}  # of step.py
WARM_UP = 2  # steps that compile and fill caches
AGREE = "training/rollout_probs_diff_mean"
MEMORY = "perf/max_memory_allocated_gb"
SHARED = "gpg/tokens_shared"

# What is healthy. Probabilities in bf16: a few thousandths apart; another model: tenths. Gradients on a CPU: 3e-7 in
# fp32, 7e-3 in bf16.
LEARNED = 0.02  # reward gained; on CPUs the quickstart's ten steps gain 0.3 and more
PROBABILITIES_APART = 0.02
GRADIENT_APART = {"fp32": 1e-4, "bf16": 0.05}


MODEL = Path("runs/quickstart/model")  # of examples/gpu_first_run.sh


# ---- before the runs


def lacking(model: str | None) -> list[str]:
    """What the runs and the page need and is not here, with how to get it. model: the user's, in place of MODEL."""
    wrong = [versions.unsupported()]
    wrong += [versions.problem(package) for package in versions.PACKAGES if package.name == "vllm"]
    if not any(wrong):
        from gpg_verl.launch.doctor import registrations  # imports veRL

        wrong += registrations()[1]
    modules = ["matplotlib"] if model or MODEL.exists() else ["matplotlib", "gguf"]
    wrong += [f"{module} is not installed: pip install {module}" for module in modules if not importable(module)]
    return [problem for problem in wrong if problem]


def attention() -> str:
    """flash-attn where it is installed and loads: one that was built for another torch does not."""
    if installed("flash-attn") is None:
        return "sdpa"
    try:
        importlib.import_module("flash_attn")
    except Exception as error:
        print(f"gpu_first_run: flash-attn does not load, so sdpa it is: {error}", file=sys.stderr)
        return "sdpa"
    return "flash_attention_2"


def look(model: str | None) -> int:
    problems = lacking(model)
    for problem in problems:
        print(f"gpu_first_run: {problem}", file=sys.stderr)
    if problems:
        return 1
    if not (shutil.which("cc") or shutil.which("gcc")):
        print(
            "gpu_first_run: no C compiler is here, with which Triton compiles; if runs fail, install gcc or add "
            "actor_rollout_ref.rollout.enforce_eager=True actor_rollout_ref.actor.use_torch_compile=False",
            file=sys.stderr,
        )
    print(attention())
    return 0


# ---- after them


def facts_of(run: Run) -> dict:
    late = run.training[WARM_UP:] if len(run.training) > WARM_UP else run.training

    def number(value: float) -> float | None:
        return None if value != value else float(value)

    def median(name: str) -> float | None:
        return number(late[name].median()) if name in late else None

    rewards = run.column(REWARD).dropna()
    return {
        "label": run.label,
        "steps": len(run.training),
        "step_s": median(STEP_SECONDS),
        "parts_s": {part: median(f"timing_s/{part}") for part in PARTS},
        "reward_first": float(rewards.iloc[0]) if len(rewards) else None,
        "reward_last": float(rewards[-3:].mean()) if len(rewards) else None,
        "held_out": run.validations.value.tolist(),
        "probabilities_apart": median(AGREE),
        "memory_gb": number(run.column(MEMORY).max()),
        "tokens_shared": median(SHARED),
    }


def verdicts(runs: dict[str, dict | None], gradient: dict | None, steps: int) -> list[tuple[bool, str]]:
    """(as it should be, what was seen) of each question."""
    found = []
    for name, run in runs.items():
        done = run["steps"] if run else 0
        found.append((done == steps, f"{RUNS[name]}: {done} of {steps} steps"))
    ours = runs.get("gpg")
    if ours:
        first, last = ours["reward_first"], ours["reward_last"]
        learned = first is not None and last >= first + LEARNED
        seen = f"{_number(first)} in the first step, {_number(last)} in the last three"
        found.append((learned, f"it learns: mean reward {seen}"))
        apart = ours["probabilities_apart"]
        agree = apart is not None and apart <= PROBABILITIES_APART
        seen = f"probabilities {_number(apart)} apart in the mean (up to {PROBABILITIES_APART})"
        found.append((agree, f"trainer and rollout agree: {seen}"))
        shared = ours["tokens_shared"]
        found.append((bool(shared), f"prefixes are shared: {_number(shared)} tokens of a step are not computed again"))
    rows = gradient["rows"] if gradient else []
    if len(rows) < 4:
        found.append((False, "the gradient on this GPU was not measured in both precisions"))
    for row in rows:
        allowed = GRADIENT_APART[row["precision"]]
        right = row["in_force"] and row["difference"] <= allowed
        found.append(
            (
                right,
                f"gradient in {row['precision']} over {row['passes']}: {row['difference']:.1e} from the definition "
                f"(up to {allowed:g}), norm {row['norm']:.6f} of it, two equal steps {row['again']:.1e} apart"
                + (f"; {row['why_not']}" if row["why_not"] else ""),
            )
        )
    return found


# ---- an update by the shape of its rows, from step.py


def shape_verdicts(shapes: list[dict], asked: list[str]) -> list[tuple[bool, str]]:
    """Whether each shape that was asked for was measured in both precisions, its gradient is finite, and the same with
    prefixes shared and row by row.
    """
    missing = set(itertools.product(asked, GRADIENT_APART)) - {(of["shape"], of["precision"]) for of in shapes}
    found = [
        (False, f"{name} rows in {precision} were not measured: see shapes.log") for name, precision in sorted(missing)
    ]
    for shape in shapes:
        norms = {name: of["grad_norm"] for name, of in shape["contenders"].items()}
        shared, rows, allowed = norms["gpg_verl"], norms["row by row"], GRADIENT_APART[shape["precision"]]
        right = all(map(math.isfinite, norms.values())) and abs(shared - rows) <= allowed * rows
        seen = ", ".join(f"{norm:.6g} {WAYS[name]}" for name, norm in norms.items())
        found.append((right, f"{shape['shape']} rows in {shape['precision']}: the gradient's norm is {seen}"))
    return found


def shape_table(shapes: list[dict]) -> tuple[pd.DataFrame, list[str]]:
    """(a line for each shape and precision, which way is the fastest in each)."""
    header = ["rows", "", *(f"{way}, s" for way in WAYS.values()), "× row by row", "× veRL's gpg", "tokens shared"]
    lines, notes = [], []
    for shape in shapes:
        of = shape["contenders"]
        seconds = {name: statistics.median(of[name]["seconds"]) for name in WAYS}
        share = of["gpg_verl"]["tokens_shared"] / shape["tokens"]
        ratios = [_number(seconds["gpg_verl"] / seconds[name]) for name in ("row by row", "veRL gpg")]
        lines.append([shape["shape"], shape["precision"], *map(_number, seconds.values()), *ratios, f"{share:.0%}"])
        fastest = WAYS[min(seconds, key=seconds.get)]
        notes.append(f"{shape['shape']} rows in {shape['precision']}: {fastest} is the fastest on this card")
    return pd.DataFrame(lines, columns=header), notes


def _number(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.4g}"


def table(runs: dict[str, dict | None]) -> pd.DataFrame:
    parts = (part.replace("_", " ") for part in PARTS)
    header = ["", "step, s", "× gpg-verl", *parts, "peak GB", "reward", "held out"]
    lines, base = [], (runs.get("gpg") or {}).get("step_s")
    for name, run in runs.items():
        if run is None:
            lines.append([RUNS[name], *["-"] * (len(header) - 1)])
            continue
        ratio = run["step_s"] / base if base and run["step_s"] else None
        parts = [_number(run["parts_s"][part]) if run["parts_s"][part] else "-" for part in PARTS]
        held = " → ".join(_number(value) for value in run["held_out"]) or "-"
        reward = f"{_number(run['reward_first'])} → {_number(run['reward_last'])}"
        lines.append(
            [RUNS[name], _number(run["step_s"]), _number(ratio), *parts, _number(run["memory_gb"]), reward, held]
        )
    return pd.DataFrame(lines, columns=header)


def machine() -> dict:
    import torch

    found = {package.name: versions.found(package) for package in versions.PACKAGES}
    named = {name: version[1] if version else "not installed" for name, version in found.items()}
    named["flash-attn"] = installed("flash-attn") or "not installed"
    card = None
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory
        card = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {memory / 2**30:.0f} GiB"
    return {"gpu": card or "none", "cuda": torch.version.cuda, "python": sys.version.split()[0], "packages": named}


def write(folder: Path, steps: int, attention: str, asked: list[str]) -> bool:
    """Writes the three files; whether all is as it should be."""
    entries: dict[str, Run | None] = {}
    for name in RUNS:
        if not (folder / name).is_dir():
            continue  # not asked for
        try:
            entries[name] = load_run(folder / name)
        except ReportError as error:
            print(f"{RUNS[name]}: {error}", file=sys.stderr)
            entries[name] = None
    if not entries:
        raise SystemExit(f"{folder}: expected {' or '.join(RUNS)} in it, as examples/gpu_first_run.sh makes them")
    runs = {name: entry and facts_of(entry) for name, entry in entries.items()}
    errors = {
        RUNS[name]: error_message(folder / name / "verl.log")
        for name, run in runs.items()
        if (run is None or run["steps"] < steps) and (folder / name / "verl.log").is_file()
    }
    gradient, shapes = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else none
        for file, none in ((folder / "gradient.json", None), (folder / "shapes.json", []))
    )
    found = verdicts(runs, gradient, steps) + shape_verdicts(shapes, asked)
    where = {**machine(), "attention": attention}
    good = all(right for right, _ in found)
    whole = {
        "as_it_should_be": good,
        "verdicts": [{"right": right, "seen": seen} for right, seen in found],
        "machine": where,
        "runs": runs,
        "gradient": gradient,
        "shapes": shapes,
        "errors": errors,
    }
    (folder / "first_run.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")

    seconds, fastest = shape_table(shapes)
    picture = ""
    if read := [entry for entry in entries.values() if entry]:
        curves(group(read), folder / "plot.png")
        picture = html_picture(folder / "plot.png")
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    verdict = "All is as it should be" if good else "Something is not as it should be"
    notes = [
        f"seconds: medians of the steps after the first {WARM_UP}",
        f"{where['gpu']}, CUDA {where['cuda']}, attention {attention}",
        f"Python {where['python']}, {packages}",
    ]
    page = [
        head("First run on a GPU"),
        html_section(Section(verdict, pd.DataFrame(), [f"{'✓' if right else '✗'} {seen}" for right, seen in found])),
        *(
            f"<p>{html.escape(label)} ended with</p><pre>{html.escape(chr(10).join(lines))}</pre>"
            for label, lines in errors.items()
        ),
        html_section(Section("Runs", table(runs), notes)),
        html_section(Section("Shapes of rows", seconds, fastest)),
        picture,
    ]
    (folder / "page.html").write_text("\n".join(page), encoding="utf-8")
    for right, seen in found:
        print(f"{'ok ' if right else 'off'} {seen}")
    for seen in fastest:
        print(f"    {seen}")
    print(f"{folder / 'page.html'}; please send us {folder / 'first_run.json'}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    before = commands.add_parser("look", help="what is not here; prints the attention that is")
    before.add_argument("--model", help="what is trained in place of the quickstart's model")
    after = commands.add_parser("page", help="writes page.html, plot.png and first_run.json")
    after.add_argument("folder", type=Path)
    after.add_argument("--steps", type=int, required=True, help="that each run was to do")
    after.add_argument("--attention", required=True, help="that the model was loaded with")
    after.add_argument("--shapes", nargs="*", default=[], help="of rows, that were to be measured")
    arguments = parser.parse_args()
    if arguments.command == "look":
        return look(arguments.model)
    return 0 if write(arguments.folder, arguments.steps, arguments.attention, arguments.shapes) else 1


if __name__ == "__main__":
    sys.exit(main())
