"""Two Ray nodes on one machine, and the tiny run across them.

    python tests/drills/two_nodes.py [compare] [lost] [unplugged] [missing] --out two_nodes

Each node has addresses, ports and folders of its own (127.0.0.2, 127.0.0.3; nothing in Ray's default folder), so that
another Ray on the machine neither sees nor disturbs them. About 10 GB and 4 minutes for each run.

    compare     a run over both nodes beside one of two workers on one node: who runs where, and do the metrics agree
    lost        all processes of the second node are killed in the middle of a step; then both nodes again, resumed
    unplugged   the second node has the package, but VERL_USE_EXTERNAL_PLUGINS=none: refused, or GPG's all the same
    missing     the second node has no gpg_verl but for its CPU platform, without which nothing would run there
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import tiny
from harness import WORKERS

ROOT = Path(__file__).resolve().parents[2]
MARK = "GPG_TWO_NODES"
TOKEN = uuid.uuid4().hex  # of these nodes: Ray asks for one where a run on this machine ever left one behind
STEPS = 6


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def role(process: psutil.Process) -> str | None:
    """A process's part in a run; None for Ray's own."""
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return next((name for name, text in WORKERS.items() if text in line), None)
    return None


def of_mark(mark: str) -> list[psutil.Process]:
    """Every process with this mark in its environment, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def kill(mark: str) -> int:
    """Kills all of a mark with SIGKILL; how many there were."""
    count = 0
    while left := of_mark(mark):
        count += len(left)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.2)
    return count


class Node:
    """A Ray node: `ray start --block`, whose processes all carry its mark."""

    def __init__(self, folder: Path, number: int, head: Node | None = None, **environment: str):
        self.ip, self.mark = f"127.0.0.{number + 1}", uuid.uuid4().hex
        port = head.port if head else free_port(self.ip)
        self.port, self.address = port, f"{head.ip if head else self.ip}:{port}"
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={self.ip}",
            "--num-cpus=16", "--num-gpus=1", "--object-store-memory=200000000", "--disable-usage-stats",
            f"--temp-dir={folder}/{number}", "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        if head:
            command += [f"--address={self.address}"]
        else:
            command += ["--head", f"--port={port}", f"--ray-client-server-port={free_port(self.ip)}"]
            command += ["--include-dashboard=false"]
        self.log = folder / f"node{number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env={**base_environment(), MARK: self.mark, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"node {number} did not start:\n{self.log.read_text()}")
            time.sleep(0.2)

    def roles(self) -> Counter[str]:
        return Counter(name for p in of_mark(self.mark) if (name := role(p)))

    def kill(self) -> int:
        count = kill(self.mark)
        self.process.wait()
        return count


def base_environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("VERL_PLATFORM", "RAY_ADDRESS")}
    # Ray's process titles would overwrite the environment in which a process is found.
    return {
        **environment,
        "PYTHONPATH": str(ROOT),
        "SPT_NOENV": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }


class Run:
    """`main_ppo` in `folder`; one with the same folder resumes it."""

    def __init__(self, folder: Path, tiny_folder: Path, name: str, *overrides: str, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics, self.log_file, self.mark = folder / f"{name}.jsonl", folder / f"{name}.log", uuid.uuid4().hex
        self.metrics.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "verl.trainer.main_ppo", *tiny.overrides(tiny_folder),
            "actor_rollout_ref.actor.optim.lr=1e-3", "actor_rollout_ref.rollout.agent.num_workers=2",
            "reward.num_workers=2", "transfer_queue.backend.SimpleStorage.num_data_storage_units=2",
            "trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=2",
            "trainer.logger=[console,file]", f"trainer.default_local_dir={folder}/checkpoints", *overrides,
        ]  # fmt: skip
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={
                    **base_environment(),
                    MARK: self.mark,
                    "VERL_FILE_LOGGER_PATH": str(self.metrics),
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def steps(self) -> dict[int, dict]:
        if not self.metrics.exists():
            return {}
        complete, _, _ = self.metrics.read_text().rpartition("\n")
        return {row["step"]: row["data"] for row in map(json.loads, complete.splitlines())}

    def wait_for_step(self, step: int, timeout: float = 500) -> None:
        deadline = time.monotonic() + timeout
        while max(self.steps(), default=0) < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no step {step}; exit code {self.process.poll()}:\n{self.log[-6000:]}")
            time.sleep(0.1)

    def end(self, timeout: float) -> int | None:
        """The exit code; None where it did not end in time and was killed."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill(self.mark)


def two_nodes(folder: Path, **second: str) -> tuple[Node, Node]:
    head = Node(folder, 1)
    return head, Node(folder, 2, head, **second)


# What makes a run one over two nodes. Its metrics file is named by an environment variable that the process which
# writes it gets from its node, hence the runtime environment.
def over_two_nodes(head: Node, metrics: Path) -> list[str]:
    return [
        "trainer.nnodes=2",
        f"+ray_kwargs.ray_init.address={head.address}",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={metrics}",
    ]


def say(*words) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def agreement(one: dict[int, dict], two: dict[int, dict]) -> list[str]:
    """What is wrong with two runs of the same data, which sample their own answers."""
    problems = []
    for name, steps in (("one node", one), ("two nodes", two)):
        if sorted(steps) != list(range(1, STEPS + 1)):
            problems.append(f"{name}: steps {sorted(steps)}")
        for step, m in steps.items():
            if not (m["gpg/B"] == 32 and m["gpg/groups"] == 4 and m["gpg/rows_dropped"] == m["gpg/M"]):
                problems.append(f"{name}, step {step}: B={m['gpg/B']}, groups={m['gpg/groups']}, M={m['gpg/M']}")
            if not m["gpg/update_skipped"] and not m["training/rollout_probs_diff_max"] < 1e-6:
                problems.append(f"{name}, step {step}: trainer and rollout {m['training/rollout_probs_diff_max']}")
            if not m["gpg/update_skipped"] and not math.isfinite(m["actor/grad_norm"]):
                problems.append(f"{name}, step {step}: gradient norm {m['actor/grad_norm']}")
    keys = [{key for m in steps.values() for key in m} for steps in (one, two)]
    if keys[0] != keys[1]:
        problems.append(f"metrics that only one has: {sorted(keys[0] ^ keys[1])}")
    return problems


def compare(out: Path, work: Path, tiny_folder: Path) -> list[str]:
    steps = f"trainer.total_training_steps={STEPS}"
    head, second = two_nodes(work)
    two = None
    try:
        two = Run(out / "two", tiny_folder, "two", steps, *over_two_nodes(head, out / "two/two.jsonl"))
        two.wait_for_step(2)
        for node in (head, second):
            say(f"node {node.ip}:", ", ".join(f"{n} {name}" for name, n in sorted(node.roles().items())))
        both = all(node.roles()["actor worker"] == 1 and node.roles()["vLLM server"] == 1 for node in (head, second))
        code = two.end(300)
    finally:
        if two:
            two.end(0)
        second.kill()
        head.kill()
    one = Run(out / "one", tiny_folder, "one", steps, "trainer.n_gpus_per_node=2", RAY_TMPDIR=str(work / "one"))
    code_one = one.end(600)
    problems = [] if (code, code_one) == (0, 0) else [f"exit codes {code} over two nodes, {code_one} on one"]
    if not both:
        problems.append("actor workers or rollout servers are not on both nodes")
    if "all 2 actor workers answer `gpg`" not in two.log:
        problems.append("the start check did not ask 2 actor workers")
    problems += agreement(one.steps(), two.steps())
    for step in range(1, STEPS + 1):
        for name, run in (("one", one), ("two", two)):
            m = run.steps().get(step, {})
            wanted = ("gpg/B", "gpg/M", "actor/grad_norm", "actor/pg_loss", "training/rollout_probs_diff_max")
            say(f"step {step}, {name}:", *(f"{key}={m.get(key)}" for key in wanted))
    return problems


def lost(out: Path, work: Path, tiny_folder: Path) -> list[str]:
    forever = "trainer.total_training_steps=100000"
    head, second = two_nodes(work)
    problems = []
    run = None
    try:
        run = Run(out / "lost", tiny_folder, "first", forever, *over_two_nodes(head, out / "lost/first.jsonl"))
        run.wait_for_step(5)
        say("killed", second.kill(), "processes of the second node; last step", max(run.steps()))
        killed = time.monotonic()
        code = run.end(300)
        say(f"exit code {code} after {time.monotonic() - killed:.0f} s; last lines:")
        print("\n".join([line for line in run.log.splitlines() if line.strip()][-12:]))
        if code in (0, None):
            problems.append(f"the run ended with {code}")
        if f"ip: {second.ip}" not in run.log or "its node has died" not in run.log:
            problems.append(f"the log does not say that the node {second.ip} was lost")
        deadline = time.monotonic() + 60
        while head.roles() and time.monotonic() < deadline:
            time.sleep(0.5)
        say(f"left of the run on the first node after {time.monotonic() - killed:.0f} s: {dict(head.roles())}")
        if head.roles():
            problems.append(f"left running: {dict(head.roles())}")
        saved = int((out / "lost/checkpoints/latest_checkpointed_iteration.txt").read_text())
        say("saved", saved, "- the second node again, and the run")
        second = Node(work, 3, head)
        run = Run(out / "lost", tiny_folder, "second", forever, *over_two_nodes(head, out / "lost/second.jsonl"))
        run.wait_for_step(saved + 2)
        say("resumed at step", min(run.steps()))
        if min(run.steps()) != saved + 1:
            problems.append(f"resumed at step {min(run.steps())}, saved was {saved}")
    finally:
        if run:
            run.end(0)
        second.kill()
        head.kill()
    return problems


ONLY_CPU = "from gpg_verl import cpu\nimport gpg_verl.cpu.platform\n\ncpu.install()\n"


def refused(out: Path, work: Path, tiny_folder: Path, kind: str, path: Path, expected: str) -> list[str]:
    """A run whose second node has `path` for its PYTHONPATH, and no plugin but the CPU platform.

    Ray puts the TaskRunner on either node; on the second it cannot find the trainer.
    """
    path.mkdir(exist_ok=True)
    (path / "only_cpu.py").write_text(ONLY_CPU)
    places = f"{path}:{ROOT}" if kind == "unplugged" else str(path)
    head, second = two_nodes(
        work, PYTHONPATH=places, VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="only_cpu"
    )
    try:
        started = time.monotonic()
        short = "trainer.total_training_steps=2"
        run = Run(out / kind, tiny_folder, kind, short, *over_two_nodes(head, out / f"{kind}/{kind}.jsonl"))
        code = run.end(400)
        say(f"exit code {code} after {time.monotonic() - started:.0f} s; last lines:")
        print("\n".join([line for line in run.log.splitlines() if line.strip()][-12:]))
    finally:
        second.kill()
        head.kill()
    if expected in run.log or "Unknown trainer 'gpg_sync'" in run.log:
        return [] if code not in (0, None) and not run.steps() else [f"exit code {code}, steps {sorted(run.steps())}"]
    if kind == "unplugged" and code == 0:  # importing GPG's actor worker is enough
        wrong = [step for step, m in run.steps().items() if not m["training/rollout_probs_diff_max"] < 1e-6]
        told = "all 2 actor workers answer `gpg`" in run.log
        return [] if told and not wrong else [f"asked: {told}, steps with another policy: {wrong}"]
    return [f"exit code {code}; the log does not say {expected!r}"]


def unplugged(out: Path, work: Path, tiny_folder: Path) -> list[str]:
    expected = "actor workers would not train with gpg_verl"
    return refused(out, work, tiny_folder, "unplugged", work / "unplugged", expected)


def missing(out: Path, work: Path, tiny_folder: Path) -> list[str]:
    path = work / "missing"
    shutil.copytree(ROOT / "gpg_verl/cpu", path / "gpg_verl/cpu")
    shutil.copytree(ROOT / "gpg_verl/compat", path / "gpg_verl/compat")
    (path / "gpg_verl/__init__.py").write_text("")
    return refused(out, work, tiny_folder, "missing", path, "No module named 'gpg_verl.training.actor'")


DRILLS = {"compare": compare, "lost": lost, "unplugged": unplugged, "missing": missing}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", help=f"of {', '.join(DRILLS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("two_nodes"))
    arguments = parser.parse_args()
    if unknown := set(arguments.drills) - set(DRILLS):
        parser.error(f"no drill {', '.join(unknown)}: known are {', '.join(DRILLS)}")
    out = arguments.out.resolve()
    tiny_folder = tiny.make(out / "tiny")
    problems: dict[str, list[str]] = {}
    for name in arguments.drills or DRILLS:
        for folder in (out / name, *([out / "one", out / "two"] if name == "compare" else [])):
            shutil.rmtree(folder, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix="g2-"))  # short: a socket's path has at most 107 characters
        say(name)
        try:
            problems[name] = DRILLS[name](out, work, tiny_folder)
        finally:
            for log in work.glob("node*.log"):
                shutil.copy(log, out)
            shutil.rmtree(work, ignore_errors=True)
        say(name, "passed" if not problems[name] else "FAILED: " + "; ".join(problems[name]))
    return int(any(problems.values()))


if __name__ == "__main__":
    sys.exit(main())
