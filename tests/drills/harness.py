"""A real tiny run that can be stopped at a certain moment, hurt, and looked after to its last process.

run = DrillRun(folder, tiny_folder, "first", "trainer.save_freq=5")
run.wait_for_step(6)
with run.held():                        # every response waits for its reward: the middle of a step
    run.find("reward worker").kill()
print(run.wait_for_end(), run.remaining(), run.after_failure())
again = DrillRun(folder, tiny_folder, "second", "trainer.save_freq=5")   # resumes
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import tiny
from launch import launch, read

MARK = "GPG_DRILL"

# The reward of examples/tiny.py, given out only while there is no file $GPG_DRILL_HOLD; None with a `.none` beside it.
HELD_REWARD = """
import os, pathlib, time
hold = pathlib.Path(os.environ["GPG_DRILL_HOLD"])
reward = compute_score

def compute_score(*args, **kwargs):
    while hold.exists():
        hold.with_suffix(".reached").touch()
        time.sleep(0.05)
    return None if hold.with_suffix(".none").exists() else reward(*args, **kwargs)
"""

# What stands in the command line of whom a drill hurts; Ray writes an actor's class there.
ROLES = {
    "actor worker": "ray::WorkerDict",
    "vLLM server": "ray::vLLMHttpServer",
    "vLLM engine": "VLLM::EngineCore",
    "agent-loop worker": "ray::AgentLoopWorker",
    "reward worker": "ray::RewardLoopWorker",
}


def make_tiny(folder: Path) -> Path:
    """examples/tiny.py's model and data, with a reward that can be held back."""
    tiny.make(folder)
    (folder / "reward.py").write_text(tiny.REWARD + HELD_REWARD)
    return folder


@dataclass
class End:
    """How a run ended, and how long after its failure. `code` is None where it did not end in time and was killed."""

    code: int | None
    seconds: float


@dataclass
class Remains:
    """What is still there after a run's end.

    gone_after: seconds until the last process was gone; None where some stayed, whose roles are in `left`.
    temporary: files and folders, but for Ray's of all its sessions.
    """

    gone_after: float | None
    left: list[str]
    shared_memory: list[str]
    temporary: list[str]


class DrillRun:
    """A run of `main_ppo` in `folder`; another one with the same folder resumes it.

    `name` names its log and metrics file, and its folder of rollouts, one file a step.
    """

    def __init__(self, folder: Path, tiny_folder: Path, name: str, *overrides: str, **environment: str):
        self.folder, self.name = folder, name
        self.command = (tiny_folder, overrides, environment)
        self.id = uuid.uuid4().hex[:12]
        self.ray_folder = Path(tempfile.mkdtemp(prefix="gd-"))  # short: its sockets' paths may have 107 characters
        self.hold = self.ray_folder / "hold"
        self.shared_memory: set[str] = set()
        # A shell starts what runs in its background with SIGINT ignored, which this run would inherit.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.failed_at = 0.0
        self.log_before = 0
        self.process = launch(
            folder,
            tiny_folder,
            name,
            f"trainer.rollout_data_dir={folder}/rollouts-{name}",
            *overrides,
            GPG_DRILL_HOLD=str(self.hold),
            RAY_TMPDIR=str(self.ray_folder),
            TMPDIR=str(self.ray_folder),
            SPT_NOENV="1",  # or Ray's process titles overwrite the environment in which a process is found
            **{MARK: self.id, **environment},
        )

    def again(self, name: str) -> DrillRun:
        """The same command once more, in the same folder."""
        tiny_folder, overrides, environment = self.command
        return DrillRun(self.folder, tiny_folder, name, *overrides, **environment)

    # ---- what it has done

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def lines(self) -> list[str]:
        """The log's lines as a terminal shows them, without the empty ones."""
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.log)
        return [line.rpartition("\r")[2] for line in text.splitlines() if line.strip()]

    def failed(self) -> None:
        """Notes the moment of the failure, for `after_failure` and `End.seconds`, and the run's shared memory."""
        self.note_shared_memory()
        self.failed_at, self.log_before = time.monotonic(), len(self.lines())

    def after_failure(self) -> list[str]:
        """The lines that the user sees from the failure on."""
        return self.lines()[self.log_before :]

    def steps(self) -> dict[int, dict]:
        return read(self.folder / f"{self.name}.jsonl")

    def saved(self) -> int:
        """The last saved step, 0 where there is none."""
        file = self.folder / "checkpoints/latest_checkpointed_iteration.txt"
        return int(file.read_text()) if file.exists() else 0

    def texts(self, step: int) -> list[tuple[str, str]] | None:
        """Prompts and responses of a step, sorted, as veRL writes them by uid; None where it did not get so far."""
        file = self.folder / f"rollouts-{self.name}/{step}.jsonl"
        rows = map(json.loads, file.read_text().splitlines()) if file.exists() else None
        return rows and sorted((row["input"], row["output"]) for row in rows)

    def prompts(self, step: int) -> list[str] | None:
        texts = self.texts(step)
        return texts and [prompt for prompt, _ in texts]

    # ---- its processes

    def processes(self) -> list[psutil.Process]:
        """Every process of the run, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.id or os.getsid(process.pid) == self.process.pid:
                    found.append(process)
        return found

    def role(self, process: psutil.Process) -> str:
        if process.pid == self.process.pid:
            return "driver"
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            return next((role for role, text in ROLES.items() if text in line), line.strip()[:60] or process.name())
        return "gone"

    def find(self, role: str) -> psutil.Process:
        """The run's first process of a role; raises LookupError naming the roles that there are."""
        roles = {self.role(process): process for process in reversed(self.processes())}
        if role not in roles:
            raise LookupError(f"no {role} among {sorted(roles)}")
        return roles[role]

    def note_shared_memory(self) -> None:
        """Remembers the files in /dev/shm that its processes have mapped, by inode, as semaphores get names later."""
        inodes: set[str] = set()
        for process in self.processes():
            with contextlib.suppress(OSError):
                inodes |= set(re.findall(r"(\d+)\s+/dev/shm/", Path(f"/proc/{process.pid}/maps").read_text()))
        for file in Path("/dev/shm").iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile
                self.shared_memory |= {str(file)} if str(file.stat().st_ino) in inodes else set()

    # ---- moments

    def wait_until(self, condition, what: str, timeout: float = 400) -> None:
        """Raises RuntimeError with the last lines where the run ends, or `timeout` seconds pass, before that."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                state = "still runs" if self.process.poll() is None else f"ended with {self.process.returncode}"
                raise RuntimeError(f"{self.name}: no {what}; it {state}:\n" + "\n".join(self.lines()[-40:]))
            time.sleep(0.1)

    def wait_for_step(self, step: int, timeout: float = 400) -> None:
        self.wait_until(lambda: max(self.steps(), default=0) >= step, f"step {step}", timeout)

    @contextlib.contextmanager
    def held(self, timeout: float = 60) -> Iterator[None]:
        """The middle of a step: generated, and waiting for its rewards, which come when this block is left."""
        self.hold.touch()
        try:
            self.wait_until(self.hold.with_suffix(".reached").exists, "reward that could be held", timeout)
            yield
        finally:
            self.hold.unlink(missing_ok=True)
            self.hold.with_suffix(".reached").unlink(missing_ok=True)

    # ---- the end

    def wait_for_end(self, timeout: float = 180) -> End:
        """Waits for the driver; what has not ended in time is killed as a whole."""
        started, code = time.monotonic(), None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout)
        if code is None:
            self.kill()
        return End(code, time.monotonic() - (self.failed_at or started))

    def remaining(self, last: int = 90) -> Remains:
        """Looks after the run's end which of its processes are left, for `last` seconds at most."""
        started, left = time.monotonic(), self.processes()
        while left and time.monotonic() - started < last:
            time.sleep(0.2)
            left = self.processes()
        of_all_sessions = {"ray/ray_current_cluster", "ray/prom_metrics_service_discovery.json"}
        rays = {str(path.relative_to(self.ray_folder)) for path in self.ray_folder.glob("ray/*")}
        return Remains(
            gone_after=None if left else time.monotonic() - started,
            left=sorted(map(self.role, left)),
            shared_memory=sorted(file for file in self.shared_memory if Path(file).exists()),
            temporary=sorted(rays - of_all_sessions),
        )

    def kill(self) -> None:
        """Ends what is left of the run, and of nothing else."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            self.process.poll()
            time.sleep(0.2)

    def close(self) -> None:
        """Ends the run and removes Ray's files and its shared memory."""
        self.kill()
        for file in self.shared_memory:
            Path(file).unlink(missing_ok=True)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
