"""Does anything grow? One tiny run of the real thing, veRL with vLLM, Ray and FSDP on a CPU, for hundreds of steps.

    python tests/drills/soak.py --steps 500 --out soak        # what follows `--` goes to veRL

About 1 s a step and 2 minutes to start, 8 GB. Half of the answers go through the guarded verifier's workers, a few of
them hostile, and the run saves every 100 steps. Every few seconds it is sampled, by role: memory (USS: private to the
process; RSS), open files, threads, processes; beside them the bytes in shared memory, in Ray's object store, on disk.

Writes OUT/soak.json (all samples), OUT/soak.md (the table) and OUT/soak.png. Exit code 1 if something is not flat:
after a warm-up of 20 % of the steps, the median of the last fifth of the samples may be above that of the first fifth
by 5 % of the level, or by the floor in FLOORS where the level is small. Also if anything is left
when the run has ended: a process, shared memory, a temporary folder. `--judge FILE` judges an earlier run's samples.

Which processes are the run's: its descendants, and whatever else has its own value of the variable SOAK_RUN in its
environment. One cache that fills up is kept small here, so that it hides nothing: oneDNN compiles each shape that vLLM
multiplies, and keeps 1,024 of them, 300 MB for this model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import tiny
from harness import shared_memory_of

MARKER = "SOAK_RUN"
MB = 1e6
WARM_UP, FLAT_SHARE = 0.2, 0.05
# What may grow in the whole run without being called growth, in each column's unit: an allocator's own movements.
FLOORS = {"uss_mb": 10, "fds": 4, "threads": 4, "processes": 1, "mb": 20}
ROLES = (  # the first that a process's title or command line matches
    ("driver", r"-m verl\.trainer\.main_ppo"),
    ("TaskRunner", r"^ray::TaskRunner"),
    ("actor worker", r"^ray::(WorkerDict|actor_rollout|GPG)"),
    ("vLLM server", r"^ray::vLLM"),
    ("vLLM engine", r"^VLLM::"),
    ("agent-loop worker", r"^ray::AgentLoop"),
    ("load balancer", r"^ray::GlobalRequestLoadBalancer"),
    ("reward worker", r"^ray::Reward"),
    ("verifier", r"from reward_fns import worker"),
    ("TransferQueue", r"^ray::(TransferQueue|SimpleStorage)"),
    ("Ray: gcs", r"gcs_server"),
    ("Ray: raylet", r"/raylet/raylet"),
    ("Ray: idle workers", r"^ray::IDLE|default_worker\.py"),
    ("Ray: agents, monitors", r"^ray::(DashboardAgent|RuntimeEnvAgent)|/ray/(dashboard|autoscaler|_private)/"),
)

# The reward: whether the first letter is a vowel. Half of the answers are asked of math-verify first, in the guarded
# workers; an answer that begins with zz is hostile, and ends at its bound on time.
REWARD = f"""
from reward_fns import Verdict, compute_score, register
from reward_fns.expression import same


def judge(text, gold, settings):
    if text[:2] == "zz":
        same(("3",), "9^{{9^{{9^{{9}}}}}}+x", settings)
    elif len(text) > 3 and text[0] in "acegikmoqsuwy":
        same((f"{{text[0]}}x^2+1",), f"{{text[1]}}x^2+{{text[2]}}y+{{len(text)}}", settings)
    return Verdict(text[:1] in {tiny.VOWELS!r}, pred=text)


register("tiny/vowels", judge)
"""


def role_of(process: psutil.Process) -> str | None:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return next((role for role, pattern in ROLES if re.search(pattern, line)), "other") if line else None


class Processes:
    """The processes of a run, also those whose parent is gone."""

    def __init__(self, root: int, marker: str):
        self.root, self.marker = psutil.Process(root), f"{MARKER}={marker}"
        self.seen: set[psutil.Process] = set()

    def __call__(self) -> list[psutil.Process]:
        found = {p for p in self.seen if p.is_running()}
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
            except OSError:
                continue
            if self.marker in environment.split("\0"):
                found.add(process)
        for process in [self.root, *found]:
            with contextlib.suppress(psutil.Error):
                found.update(process.children(recursive=True))
        self.seen = found | {self.root}
        return list(self.seen)


def sample(processes: list[psutil.Process]) -> dict[str, dict[str, float]]:
    """role → what its processes have together."""
    roles: dict = defaultdict(lambda: dict.fromkeys(("uss_mb", "rss_mb", "fds", "threads", "processes"), 0))
    for process in processes:
        role = role_of(process)
        try:
            memory = process.memory_full_info()
            values = (memory.uss / MB, memory.rss / MB, process.num_fds(), process.num_threads(), 1)
        except psutil.Error:
            continue  # it ended
        if role is not None:
            for name, value in zip(list(roles[role]), values, strict=True):
                roles[role][name] += value
    return dict(roles)


def shared_memory(processes: list[psutil.Process]) -> dict[str, float]:
    """What the run's processes hold in /dev/shm, also what has no name any more: MB, and files with a name."""
    blocks, names = {}, set()
    for process in processes:
        for link in Path(f"/proc/{process.pid}/fd").glob("*"):
            try:
                name = os.readlink(link)
                if name.startswith("/dev/shm/"):
                    state = link.stat()
                    blocks[state.st_ino] = state.st_blocks * 512
                    if not name.endswith("(deleted)"):
                        names.add(name)
            except OSError:
                continue  # closed, or its process ended
    return {"shared memory": sum(blocks.values()) / MB, "files in /dev/shm": len(names)}


def folder_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
        except OSError:
            pass  # gone meanwhile
    return total


def object_store(processes: list[psutil.Process]) -> dict[str, float]:
    """What the run's raylet says of its object store, in MB and objects."""
    from ray._private.internal_api import node_stats

    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "/raylet/raylet" not in line:
            continue
        # With port 0 the raylet chose one; it is among those that it listens on.
        address = re.search(r"--node_ip_address=(\S+)", line)[1]
        for connection in process.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            try:
                stats = node_stats(address, connection.laddr.port, include_memory_info=False).store_stats
            except Exception:
                continue  # another of its services
            return {
                "object store used": stats.object_store_bytes_used / MB,
                "objects": stats.num_local_objects,
                "spilled in all": stats.spilled_bytes_total / MB,
            }
    return {}


def surroundings(run: Path, temp: Path, processes: list[psutil.Process], store: dict[str, float]) -> dict[str, float]:
    """Of the run as a whole, in MB."""
    logs = sum(folder_bytes(folder) for folder in temp.glob("session_2*/logs"))
    return {
        **shared_memory(processes),
        "run's folder": folder_bytes(run) / MB,
        "Ray's logs": logs / MB,
        "Ray's spill folder": sum(folder_bytes(folder) for folder in temp.glob("session_2*/ray_spilled*")) / MB,
        **store,
    }


def last_step(file: Path) -> int:
    if not file.exists():
        return 0
    complete, _, _ = file.read_text().rpartition("\n")
    return json.loads(complete.splitlines()[-1])["step"] if complete else 0


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Per step: the median over pairs of samples a good way apart (Theil and Sen)."""
    i, j = np.triu_indices(len(steps), max(1, len(steps) // 4))
    apart = steps[j] > steps[i]
    return float(np.median((values[j] - values[i])[apart] / (steps[j] - steps[i])[apart])) if apart.any() else 0.0


def judge(samples: list[dict], steps: int) -> list[dict]:
    """A line for each role and column: first, after warm-up, last, slope per 100 steps, growth, flat or not."""
    names = sorted({(kind, role, column) for s in samples for kind in ("roles", "whole") for role in s[kind]
                    for column in (s[kind][role] if kind == "roles" else ["mb"])})  # fmt: skip
    lines = []
    for kind, role, column in names:
        of = [s[kind].get(role, {}).get(column, 0) if kind == "roles" else s[kind].get(role, 0) for s in samples]
        at, values = np.array([s["step"] for s in samples]), np.array(of, dtype=float)
        late = at >= WARM_UP * steps
        if not late.any():
            raise SystemExit(f"the run ended at step {at[-1]} of {steps}: nothing to judge")
        per_step, level = slope(at[late], values[late]), float(np.median(values[late]))
        fifth, judged = max(1, int(late.sum()) // 5), column != "rss_mb"
        growth = float(np.median(values[late][-fifth:]) - np.median(values[late][:fifth]))
        lines.append(
            {
                "role": role,
                "column": column,
                "first": float(values[0]),
                "warm": float(values[late][0]),
                "last": float(values[-1]),
                "per_100_steps": per_step * 100,
                "growth": growth,
                "flat": growth <= max(FLAT_SHARE * level, FLOORS.get(column, 0)) if judged else None,
            }
        )
    return lines


def table(lines: list[dict]) -> str:
    rows = ["| what | first | after warm-up | last | per 100 steps | flat |", "|---|---|---|---|---|---|"]
    for line in lines:
        what = line["role"] if line["column"] == "mb" else f"{line['role']}: {line['column']}"
        numbers = " | ".join(f"{line[key]:.1f}" for key in ("first", "warm", "last"))
        rows.append(f"| {what} | {numbers} | {line['per_100_steps']:+.2f} | {VERDICTS[line['flat']]} |")
    return "\n".join(rows)


def said_of(lines: list[dict]) -> str:
    growing = [f"{line['role']} {line['column']}" for line in lines if line["flat"] is False]
    return f"not flat: {', '.join(growing)}" if growing else "all flat"


VERDICTS = {True: "yes", False: "**no**", None: ""}


def plot(samples: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(14, 9))
    steps = [s["step"] for s in samples]
    roles = sorted({role for s in samples for role in s["roles"]})
    for axis, column in zip(axes.flat, ("uss_mb", "fds", "threads"), strict=False):
        for number, role in enumerate(roles):
            values = [s["roles"].get(role, {}).get(column, 0) for s in samples]
            axis.plot(steps, values, label=role, color=pyplot.cm.tab20(number % 20))
        axis.set(title={"uss_mb": "private memory (MB)", "fds": "open files", "threads": "threads"}[column])
        axis.set_yscale("symlog" if column != "uss_mb" else "log")
    for name in sorted({name for s in samples for name in s["whole"]}):
        axes[1, 1].plot(steps, [s["whole"].get(name, 0) for s in samples], label=name)
    axes[1, 1].set(title="of the run as a whole (MB; objects)", yscale="symlog")
    axes[0, 0].legend(fontsize=7)
    axes[1, 1].legend(fontsize=7)
    for axis in axes.flat:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def command(out: Path, temp: Path, steps: int, extra: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "verl.trainer.main_ppo", *tiny.overrides(out / "tiny", response=8),
        f"reward.custom_reward_function.path={out}/reward.py",
        "+reward.custom_reward_function.reward_kwargs.verify_timeout=1",
        # So small a learning rate that the share of mixed groups, and with it a step's work, stays what it is.
        "actor_rollout_ref.actor.optim.lr=1e-6", f"trainer.total_training_steps={steps}", "trainer.total_epochs=100000",
        "trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=100",
        "trainer.max_actor_ckpt_to_keep=2", "trainer.logger=[console,file]",
        f"trainer.default_local_dir={out}/run/checkpoints", f"+ray_kwargs.ray_init._temp_dir={temp}", *extra,
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--judge", type=Path, metavar="FILE", help="a soak.json; nothing is run")
    parser.add_argument("overrides", nargs="*", help="for veRL, after --")
    arguments = parser.parse_args()

    if arguments.judge:
        recorded = json.loads(arguments.judge.read_text())
        lines = judge([s for s in recorded["samples"] if s["step"] < recorded["steps"]], recorded["steps"])
        print(table(lines), said_of(lines), sep="\n")
        return int(any(line["flat"] is False for line in lines))

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = arguments.out.resolve()
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "run").mkdir(parents=True)
    tiny.make(out / "tiny", rows=512)
    (out / "reward.py").write_text(REWARD)
    temp = Path(tempfile.mkdtemp(prefix="soak"))  # short: a socket's path has at most 107 characters
    marker, metrics = uuid.uuid4().hex, out / "run/metrics.jsonl"
    environment = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"}
    environment |= {MARKER: marker, "VERL_FILE_LOGGER_PATH": str(metrics), "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    environment["TMPDIR"] = str(temp)
    environment["SPT_NOENV"] = "1"  # or Ray's workers write their titles over the environment in which they are found
    os.environ["RAY_AUTH_MODE"] = "token"  # as in a Ray that a run starts for itself: for asking its raylet
    samples: list[dict] = []
    named: set[str] = set()  # files in shared memory
    console = Console()
    with (out / "run/log").open("w") as log:
        run = subprocess.Popen(
            command(out, temp, arguments.steps, arguments.overrides),
            cwd=out, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    processes = Processes(run.pid, marker)
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task, said = bar.add_task("starting", total=arguments.steps), 0
            while run.poll() is None:
                step = last_step(metrics)
                if step:
                    running = processes()
                    store = object_store(running)
                    named |= shared_memory_of(running)
                    whole = surroundings(out / "run", temp, running, store)
                    samples.append({"step": step, "time": time.time(), "roles": sample(running), "whole": whole})
                    bar.update(task, completed=step, description="training")
                    if not console.is_terminal and step >= said + 25:
                        said = step
                        memory = (f"{role} {of['uss_mb']:.0f}" for role, of in sorted(samples[-1]["roles"].items()))
                        console.print(f"step {step}, MB: {', '.join(memory)}", soft_wrap=True)
                time.sleep(arguments.every)
        left = [role_of(p) or "?" for p in processes() if p.pid != run.pid and p.status() != psutil.STATUS_ZOMBIE]
        left += [name for name in sorted(named) if Path(name).exists()]
        left += [str(path) for path in temp.iterdir() if path.name.startswith(("session", "gpg-"))]
    finally:
        for process in processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        run.wait()
        shutil.rmtree(temp, ignore_errors=True)
    if last_step(metrics) < 2:
        console.print((out / "run/log").read_text()[-5000:], markup=False)
        return 1
    (out / "soak.json").write_text(json.dumps({"steps": arguments.steps, "samples": samples}))
    samples = [s for s in samples if s["step"] < arguments.steps]  # at the last one it is already ending
    lines = judge(samples, arguments.steps)
    (out / "soak.md").write_text(table(lines) + "\n")
    plot(samples, out / "soak.png")
    console.print(table(lines), markup=False, soft_wrap=True)
    growing = [line for line in lines if line["flat"] is False]
    seconds = (samples[-1]["time"] - samples[0]["time"]) / max(1, samples[-1]["step"] - samples[0]["step"])
    console.print(
        f"exit code {run.returncode}, {samples[-1]['step']} steps of {seconds:.2f} s, {len(samples)} samples; "
        f"left: {', '.join(left) or 'nothing'}"
    )
    console.print(said_of(lines))
    return int(bool(growing) or run.returncode != 0 or bool(left))


if __name__ == "__main__":
    sys.exit(main())
