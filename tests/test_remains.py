"""What is left of a run's Ray when it ends, well or not: no process, no shared memory, no temporary file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

# A Ray whose actor makes what veRL's and vLLM's processes make, and then does not see that Ray is gone.
PROGRAM = """
import json, os, signal, subprocess, sys
import ray
from gpg_verl.guards import remains

class Stuck:
    def make(self):
        import mmap, tempfile, zmq
        from multiprocessing import get_context
        waits = "import time\\nfrom multiprocessing import *\\ntime.sleep(99)"
        self.engine = subprocess.Popen([sys.executable, "-c", waits])
        self.semaphore = get_context("spawn").Semaphore()
        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.bind(f"ipc://{tempfile.gettempdir()}/{'s' * 36}")
        tempfile.mkstemp()
        with open(f"/dev/shm/verl_weights_{os.getpid()}", "w+b") as bucket:
            bucket.truncate(4096)
            self.bucket = mmap.mmap(bucket.fileno(), 4096)
        semaphore = f"/dev/shm/sem.{self.semaphore._semlock.name.strip('/')}"
        return [os.getpid(), self.engine.pid], [bucket.name, semaphore], os.environ["TMPDIR"]

remains.LEAVE_SECONDS = 2
with remains.nothing_stays(keep_logs=sys.argv[1] == "fails"):
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    stuck = ray.remote(num_cpus=0)(Stuck).remote()
    made = ray.get(stuck.make.remote())
    print(json.dumps(made), flush=True)
    for process in made[0]:
        os.kill(process, signal.SIGSTOP)
    if sys.argv[1] == "fails":
        sys.exit(3)
print(os.environ["TMPDIR"], "RAY_TMPDIR" in os.environ, flush=True)
"""


@pytest.fixture
def base():
    """A temporary folder with a short path: the sockets below it may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("end", ["well", "fails"])
def test_nothing_stays(base, end):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(base)}
    environment["RAY_ADDRESS"] = "local"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, end], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == (3 if end == "fails" else 0), done.stderr
    made, *after = done.stdout.splitlines()
    processes, files, folder = json.loads(made)
    assert not any(map(psutil.pid_exists, processes))
    assert [file for file in files if Path(file).exists()] == []
    assert Path(folder).parent == base
    assert after == ([f"{base} False"] if end == "well" else [])
    left = sorted(str(path.relative_to(base)) for path in base.glob("*/*") if path.name != "ray_current_cluster")
    if end == "fails":
        (session,) = base.glob("ray/session_2*")
        assert [path.name for path in session.iterdir()] == ["logs"]
        assert f"gpg_verl: Ray's logs are in {session}/logs\n" in done.stderr
        left = sorted(set(left) - {"ray/session_latest", f"ray/{session.name}"})
    assert left == []
    assert [path.name for path in base.iterdir()] == ["ray"]


def test_the_ray_of_who_calls_goes_on(monkeypatch):
    import ray

    from gpg_verl.guards import remains

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(remains, "end_ray", pytest.fail)
    before = dict(os.environ)
    with remains.nothing_stays():
        assert dict(os.environ) == before


def test_a_folder_too_long_for_sockets_is_not_made(monkeypatch, tmp_path):
    from gpg_verl.guards import remains

    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{'x' * 50}")
    before = dict(os.environ)
    with remains.nothing_stays():
        assert dict(os.environ) == before
