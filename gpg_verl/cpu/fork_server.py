"""Ray's workers as forks of one process that has imported what they need.

A run of veRL has ten processes, and each imports torch, transformers, veRL and vLLM: most of the time to its first step
on two cores. Here one does, started by the first of them (fork_client.py, as Ray's `py_executable`), and the others are
forked from it. It has no connection to Ray, no model and no thread that computes; it ends with its raylet.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import shlex
import signal
import socket
import sys
import traceback
import types
from pathlib import Path

from gpg_verl import cpu
from gpg_verl.cpu import fork_client
from gpg_verl.cpu.fork_client import ADDRESS, MOST_FILES, SIZE, SPAWNED

# What the run's processes import, the trainer's first.
PRELOADED = (
    "ray._private.workers.default_worker",
    "transfer_queue",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.experimental.reward_loop",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)


def main() -> None:
    """The server, and in each fork of it the worker."""
    listener = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    before = dict(os.environ)
    cpu.set_environment()  # torch and vLLM read some of it where they are imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # no pool of threads to be lost in a fork
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except Exception:  # the workers that need it will say so too
            traceback.print_exc()
    imported = {key: value for key, value in os.environ.items() if before.get(key) != value}
    imported.pop("OMP_NUM_THREADS", None)
    executable = write_executable(Path(sys.argv[1]))
    gc.collect()
    gc.freeze()  # a collection would write to, and so copy, every page
    request = Server(listener).serve()
    run_as_worker(request, before, imported, executable)


class Server:
    def __init__(self, listener: socket.socket):
        self.listener = listener
        self.raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
        self.children: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.ended, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.wakeup = wakeup
        self.selector.register(self.listener, selectors.EVENT_READ, self.fork)
        self.selector.register(self.ended, selectors.EVENT_READ, self.reap)
        self.selector.register(self.raylet, selectors.EVENT_READ, lambda raylet: os._exit(0))

    def serve(self) -> dict:
        """Returns in each fork, with what the process was asked for; ends the server with its raylet."""
        while True:
            for key, _ in self.selector.select():
                if (request := key.data(key.fileobj)) is not None:
                    return request

    def fork(self, listener) -> dict | None:
        client, _ = listener.accept()
        try:
            head, files, _, _ = socket.recv_fds(client, SIZE, MOST_FILES)
            request = json.loads(client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
            # A file must have the number that it has in the client: a spawned process's arguments name it.
            wanted = dict(zip(request["files"], files, strict=True))
        except (OSError, ValueError):  # it is gone, or has too many
            client.close()
            return None
        child = os.fork() if self.can_give(wanted, client) else None
        if child == 0:
            self.close_fds()
            client.close()
            dup_fds(wanted)
            return request
        for file in files:
            os.close(file)
        if child is None:
            client.close()
            return None
        self.children[child] = client
        self.selector.register(client, selectors.EVENT_READ, self.abandoned)
        with contextlib.suppress(OSError):
            client.sendall(child.to_bytes(SIZE, "big"))
        return None

    def can_give(self, wanted: dict[int, int], client: socket.socket) -> bool:
        """Whether no import has opened a file by one of these numbers; the server's own are closed in a fork."""
        own = {file.fileno() for file in (self.selector, self.listener, client, *self.children.values())}
        own |= {0, 1, 2, self.ended, self.wakeup, self.raylet, *wanted.values()}
        return all(number in own or not os.path.exists(f"/proc/self/fd/{number}") for number in wanted)

    def close_fds(self) -> None:
        """In a fork: nothing of the server stays open."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for file in (self.listener, *self.children.values()):
            file.close()
        for number in (self.ended, self.wakeup, self.raylet):
            os.close(number)

    def reap(self, ended: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(ended, 4096)
        for child, client in list(self.children.items()):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                del self.children[child]
                with contextlib.suppress(OSError):
                    client.sendall(os.waitstatus_to_exitcode(status).to_bytes(SIZE, "big", signed=True))
                with contextlib.suppress(KeyError):  # abandoned before
                    self.selector.unregister(client)
                client.close()

    def abandoned(self, client: socket.socket) -> None:
        """The client was killed: kill its worker, whose end `reap` reports."""
        if client not in self.children.values():  # its worker ended at the same moment
            return
        self.selector.unregister(client)
        for child, its in self.children.items():
            if its is client:
                os.kill(child, signal.SIGKILL)


def write_executable(address: Path) -> str:
    """Beside the server's socket, what multiprocessing takes for Python."""
    file = address.with_name("fork_python")
    python = shlex.join([sys.executable, "-I", "-S", fork_client.__file__])
    file.write_text(f'#!/bin/sh\nexec {python} "$@"\n', encoding="utf-8")
    file.chmod(0o700)
    return str(file)


def dup_fds(wanted: dict[int, int]) -> None:
    """Gives each file its number."""
    moved = {number: fcntl.fcntl(file, fcntl.F_DUPFD, 1 + max(wanted)) for number, file in wanted.items()}
    for file in wanted.values():
        os.close(file)
    for number, file in moved.items():
        os.dup2(file, number)
        os.close(file)


def run_as_worker(request: dict, before: dict[str, str], imported: dict[str, str], executable: str) -> None:
    """Turns a fork into the worker of the request.

    Args:
        before: the server's environment before its imports.
        imported: what the imports have changed in it, which holds for the worker too where it has no value of its own.
        executable: what it starts its own processes with.
    """
    import tempfile

    import numpy as np
    import setproctitle

    # vLLM names its processes by this, which finds nothing to write to in one where Ray's copy of it has been.
    if "ray._raylet" in sys.modules:
        setproctitle.setproctitle = sys.modules["ray._raylet"].setproctitle
    environment = request["environment"]
    environment |= {key: value for key, value in imported.items() if environment.get(key) == before.get(key)}
    try:
        os.setpgid(0, request["group"])  # as one whom the client had started: its group is killed with it, and no other
    except OSError:  # a group of another session
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["folder"])
    tempfile.tempdir = None  # asked for again, by the worker's environment
    np.random.seed()
    cpu.use_all_cores()
    os.environ[ADDRESS] = str(Path(executable).with_name("fork_server"))
    multiprocessing.set_executable(executable)
    arguments = request["arguments"]
    if SPAWNED in arguments:
        code = arguments[arguments.index("-c") + 1]
        sys.argv = ["-c", SPAWNED]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(code, sys.modules["__main__"].__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
