"""The fork server without Ray: what a worker sees of it, and how either end tells the other of its own.

A worker here is a small script, and the server's raylet a process that sleeps; test_run.py has the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from gpg_verl.cpu import fork_client, fork_server

WORKER = """
import json, multiprocessing, os, sys

def child(queue):
    queue.put("xml.dom" in sys.modules)

if __name__ == "__main__":
    preloaded = "xml.dom" in sys.modules
    import numpy as np
    print(json.dumps({
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "own": os.environ["OWN"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "main": __name__,
        "preloaded": preloaded,
        "random": np.random.random(),
    }), flush=True)
    if "spawn" in sys.argv:
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(json.dumps(queue.get(timeout=60)), flush=True)
        process.join()
        sys.exit(process.exitcode)
    if "wait" in sys.argv:
        import time
        time.sleep(60)
    sys.exit(3)
"""


PYTHON = (sys.executable, "-I", "-S", fork_client.__file__)


@pytest.fixture
def raylet():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def start(tmp_path, raylet, monkeypatch):
    """Starts a worker as Ray does: `py_executable` before the script and its arguments."""
    (tmp_path / "worker.py").write_text(WORKER)
    # What a real server imports takes ten seconds; the client's command for it stays.
    small = tmp_path / "small"
    small.mkdir()
    (small / "sitecustomize.py").write_text(
        "from gpg_verl.cpu import fork_server as s\ns.PRELOADED = ('xml.dom', 'nowhere')\n"
    )
    started = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [*PYTHON, "worker.py", f"--raylet-name={tmp_path}/raylet", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(small), "RAY_RAYLET_PID": str(raylet.pid), "OWN": "1", **environment},
            preexec_fn=lambda: os.setpgid(0, 0),  # as a raylet does
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    raylet.kill()  # and with it the server
    for process in started:
        process.wait(20)
        process.stdout.close()


def said(process: subprocess.Popen):
    return json.loads(process.stdout.readline())


def test_a_worker_is_a_fork_with_the_files_environment_folder_and_arguments_of_who_asked(start, tmp_path):
    first = start("one", OWN="a")
    seen = [said(first)]
    second = start("two", OWN="b")
    seen.append(said(second))
    assert [worker["own"] for worker in seen] == ["a", "b"]
    assert seen[0]["parent"] == seen[1]["parent"] not in (first.pid, second.pid)
    assert psutil.Process(seen[0]["parent"]).cmdline()[-1] == f"{tmp_path}/fork_server"
    for worker, name in zip(seen, ("one", "two"), strict=True):
        assert worker["arguments"] == ["worker.py", f"--raylet-name={tmp_path}/raylet", name]
        assert (worker["folder"], worker["main"], worker["preloaded"]) == (str(tmp_path), "__main__", True)
        assert worker["threads"] is None  # the server's own setting
    # A raylet kills the group of a worker that has died: no worker is in another's, and the server in none of theirs.
    assert [worker["group"] for worker in seen] == [first.pid, second.pid]
    assert os.getpgid(seen[0]["parent"]) == seen[0]["parent"]
    assert seen[0]["random"] != seen[1]["random"]
    assert second.wait(20) == 3


def test_who_started_the_server_stays_as_long_as_it(start, raylet):
    first = start()
    assert said(first)
    assert start().wait(20) == 3
    time.sleep(0.5)
    assert first.poll() is None
    raylet.kill()
    assert first.wait(20) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_the_worker_and_its_end_comes_back(start, number):
    assert said(start())
    waiting = start("wait")
    worker = next(child for child in psutil.Process(said(waiting)["parent"]).children())
    waiting.send_signal(number)
    assert waiting.wait(20) == -number
    psutil.wait_procs([worker], 20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_killed_worker_ends_who_stands_for_it(start):
    assert said(start())
    waiting = start("wait")
    for child in psutil.Process(said(waiting)["parent"]).children():
        child.kill()
    assert waiting.wait(20) == -signal.SIGKILL


def test_a_worker_and_who_stands_for_it_may_end_in_one_look():
    """As where a raylet kills the group of a dead worker: the server then hears of the client last, in one look."""
    code = """
import os, selectors, socket
from gpg_verl.cpu.fork_server import Server

listener = socket.socket(socket.AF_UNIX)
listener.bind("")  # a name of the kernel's choice
listener.listen()
server = Server(listener)
ours, clients = socket.socketpair()
child = os.fork() or os._exit(0)
server.children[child] = ours
server.selector.register(ours, selectors.EVENT_READ, server.abandoned)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
clients.close()
server.reap(server.ended)
server.abandoned(ours)
print(server.children)
"""
    environment = {**os.environ, "RAY_RAYLET_PID": str(os.getpid())}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == "{}\n", run.stderr


def test_a_worker_spawns_from_the_server_too(start):
    assert said(start())
    spawning = start("spawn")
    server = said(spawning)["parent"]
    assert said(spawning) is True
    assert spawning.wait(20) == 0
    assert psutil.Process(server).is_running()


def test_without_a_server_python_is_started(start, tmp_path):
    assert said(start())
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and process.info["cmdline"][-1] == f"{tmp_path}/fork_server":
            process.kill()
    time.sleep(0.5)
    alone = start("alone")
    seen = said(alone)
    assert (seen["parent"], seen["preloaded"]) == (os.getpid(), False)
    assert alone.wait(20) == 3


def test_what_is_preloaded_is_there_and_computes_in_no_thread():
    code = f"""
import importlib, json, os
for name in {fork_server.PRELOADED!r}:
    importlib.import_module(name)
print(json.dumps([open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")]))
"""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    threads = json.loads(run.stdout.splitlines()[-1])
    # The allocator of pyarrow, and the pool of torch.set_num_threads: both are made to be forked.
    assert len(threads) - threads.count("jemalloc_bg_thd") <= 2, threads
