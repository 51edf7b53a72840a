"""The course of examples/cluster/slurm.sbatch, with stand-ins of Slurm's commands and of Ray's.

A node's part is a process that lives until it is killed, as `ray start --block` does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples/cluster/slurm.sbatch"

SCONTROL = """
case $1-$2 in
    show-hostnames) printf 'n1\\nn2\\n' ;;
    show-node) echo "NodeName=$3 NodeAddr=${ADDRESS-127.0.0.${3#n}} State=ALLOCATED" ;;
    requeue-*) echo "$2" >"$SEEN/requeued" ;;
esac
"""
SRUN = """
echo "$@" >>"$SEEN/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# What slurm.sbatch asks of Python: a token, Ray's parts, to wait for all nodes, and here the run.
PYTHON = """
case $* in
    "-c "*) echo token ;;
    *" start "*) echo "$@" >>"$SEEN/started"; [ -z "${RAY_FAILS:-}" ] || exit 1; exec sleep 600 ;;
    "- "*) # Python waits in one process: nothing of it stays for a moment when it is ended
        mkfifo "$SEEN/never" && exec 9<>"$SEEN/never"
        while lines=() && { mapfile -t lines <"$SEEN/started"; } 2>/dev/null; [ ${#lines[@]} -lt "$2" ]; do
            read -rt 0.05 -u 9 || true
        done ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm does, with the command of a job."""
    seen, venv = tmp_path / "seen", tmp_path / "venv/bin"
    for folder in (seen, venv, tmp_path / "scratch"):
        folder.mkdir(parents=True)
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("python", PYTHON)):
        (venv / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (venv / name).chmod(0o755)

    def start(*command: str, **variables: str) -> subprocess.Popen:
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_ON_NODE": "2",
            "SLURM_GPUS_ON_NODE": "4",
        }
        return subprocess.Popen(
            ["bash", SCRIPT, *command],
            env={
                "PATH": f"{venv}:{os.environ['PATH']}",
                "VENV": str(tmp_path / "venv"),
                "SCRATCH": str(tmp_path / "scratch"),
                "SEEN": str(seen),
                "SLURM_SUBMIT_DIR": str(tmp_path),
                **slurm,
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    start.seen, start.folder = seen, tmp_path
    return start


def ended(process: subprocess.Popen, code: int, says: str = "") -> str:
    """What it said; it ended with the code."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert says in output
    return output


def left(folder: Path) -> list[str]:
    """Folders of Ray's, and processes of the job, which have its scratch folder in their environment."""
    found = [str(path) for path in (folder / "scratch").iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SCRATCH={folder}/scratch".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 7])
def test_the_job_ends_with_the_commands_code_and_leaves_nothing(job, code):
    """Ray starts once a node, with folders and addresses of its own."""
    script = f'echo "$RAY_ADDRESS $NNODES $GPUS ${{SEED:-none}}"; exit {code}'
    ended(job("bash", "-c", script, RAY_ARGS="--num-cpus=16"), code, says="127.0.0.1:20007 2 4 none")
    assert not (job.seen / "requeued").exists()
    assert left(job.folder) == []
    head, other = sorted((job.seen / "started").read_text().splitlines(), key=lambda line: "--head" not in line)
    assert {"--head", "--node-ip-address=127.0.0.1", "--port=20007"} <= set(head.split())
    assert {"--node-ip-address=127.0.0.2", "--address=127.0.0.1:20007"} <= set(other.split())
    for number, line in enumerate((head, other)):
        assert {f"--temp-dir={job.folder}/scratch/ray-7-{number}", "--num-cpus=16"} <= set(line.split())


def test_a_recipe_gets_the_number_of_its_array_job_as_seed(job, tmp_path):
    (tmp_path / "recipe.sh").write_text('[ "$SEED" = 3 ] && [ "$1" = row ]')
    ended(job("recipe.sh", "row", SLURM_ARRAY_TASK_ID="3"), 0)


DRIVER = "trap 'exit 75' USR1; touch $SEEN/running; while true; do sleep 0.1; done # verl.trainer.main_ppo"


def test_a_preempted_run_is_told_and_its_job_queued_again(job, tmp_path):
    """The signal comes to the batch script; the run's driver is a child of a recipe's."""
    (tmp_path / "recipe.sh").write_text(
        f"set -e\nbash -c {DRIVER!r} || exit $?\necho never\n".replace("$SEEN", str(job.seen))
    )
    process = job("recipe.sh")
    wait_until((job.seen / "running").exists)
    process.send_signal(signal.SIGUSR1)
    assert "never" not in ended(process, 75)
    assert (job.seen / "requeued").read_text() == "7\n"
    assert left(job.folder) == []


def test_scancel_ends_all(job):
    process = job("bash", "-c", "touch $SEEN/running; exec sleep 600")
    wait_until((job.seen / "running").exists)
    process.send_signal(signal.SIGTERM)
    ended(process, 143)
    assert not (job.seen / "requeued").exists()
    assert left(job.folder) == []


def test_a_ray_that_does_not_start_ends_the_job(job):
    """On both nodes: the second to say so is not heard while the first is handled."""
    output = ended(job("true", RAY_FAILS="1"), 1)
    assert output.count("Ray ended on a node before all had joined") == 1
    assert left(job.folder) == []


@pytest.mark.parametrize(("command", "variables", "code", "says"), [
    ([], {}, 2, "which command?"),
    (["true"], {"VENV": "/nowhere"}, 2, "VENV=/nowhere: no such folder"),
    (["true"], {"ADDRESS": ""}, 1, "no IPv4 address of node n1, NodeAddr=: look at scontrol show node n1"),
])  # fmt: skip
def test_what_it_cannot_start_with_is_named(job, command, variables, code, says):
    ended(job(*command, **variables), code, says)
