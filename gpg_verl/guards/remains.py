"""The end of a run, whatever way: no process of it stays, no shared memory, no temporary folder.

Left to Ray (2.60), a worker was seen to stay on a busy machine, with all its memory, after a run that ended well. Each
run of veRL (0.9.1) leaves vLLM's sockets, locks and semaphores behind, and each of Ray its session's folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOG_SECONDS = 0.5  # for the workers' last lines to arrive, as Ray gives them where a process exits
LEAVE_SECONDS = 10.0  # for processes to leave by themselves
LONGEST_FOLDER = 60  # characters: the sockets in it have up to 37 more, and may have 107

# What is ended if it does not leave, by its command, beside Ray's own: a logger's service may have more to send.
ENDED = re.compile(r"^VLLM::|from multiprocessing|from reward_fns")
# What processes make for themselves in shared memory: veRL's buckets of weights, what Python, torch and NCCL share.
SHARED_MEMORY = re.compile(r"verl_weights_|psm_|sem\.mp-|torch_|nccl-")


@dataclass
class Remains:
    """keep_logs: Ray's stay, for who looks for the cause of an error; may be set while the run lasts."""

    keep_logs: bool


@contextlib.contextmanager
def nothing_stays(keep_logs: bool = False) -> Iterator[Remains]:
    """Around a run. The Ray that is started in it ends with it, and what its processes leave is removed."""
    import ray

    remains = Remains(keep_logs)
    if ray.is_initialized():  # by the caller, for longer than this run
        yield remains
        return
    with _temporary_folder():
        try:
            yield remains
        finally:
            end_ray(remains.keep_logs)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """A folder for the temporary files of the processes that are started while it lasts."""
    base = tempfile.gettempdir()
    if len(base) > LONGEST_FOLDER - len("/gpg-12345678"):
        yield
        return
    folder = tempfile.mkdtemp(prefix="gpg-")
    before = {name: os.environ.get(name) for name in ("TMPDIR", "RAY_TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    os.environ["TMPDIR"] = folder
    # These stay where they are looked for: by `ray status`, and by the next run.
    os.environ.setdefault("RAY_TMPDIR", base)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{base}/torchinductor_{os.getuid()}")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def end_ray(keep_logs: bool = False) -> None:
    """Ends the Ray that this process started, so that nothing of it is printed later, and removes what it leaves.

    Where this process only joined a Ray, that goes on without it.
    """
    import psutil
    import ray

    time.sleep(LOG_SECONDS if ray.is_initialized() else 0)
    session, processes = _session_folder(), _processes()
    shared_memory = _shared_memory(processes)
    ray.shutdown()
    left = [
        process
        for process in psutil.wait_procs(processes, LEAVE_SECONDS)[1]
        if _is_rays(process) or ENDED.search(_command(process))
    ]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, LEAVE_SECONDS)
    for file in shared_memory:
        file.unlink(missing_ok=True)
    if session is not None:
        _remove(session, keep_logs)


def _processes() -> list:
    """Of the Ray that this process started: its services and all that came of them."""
    import psutil

    found = []
    for service in filter(_is_rays, psutil.Process().children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [service, *service.children(recursive=True)]
    return found


def _is_rays(process) -> bool:
    import ray

    command = _command(process)
    return command.startswith("ray") or f"{Path(ray.__file__).parent}/" in command


def _command(process) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone
        return ""


def _remove(session: Path, keep_logs: bool) -> None:
    logs = session / "logs"
    if keep_logs and logs.is_dir():
        print(f"gpg_verl: Ray's logs are in {logs}", file=sys.stderr)
        for entry in session.iterdir():
            if entry.is_dir() and entry != logs:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != logs:
                entry.unlink(missing_ok=True)
        return
    shutil.rmtree(session, ignore_errors=True)
    with contextlib.suppress(OSError):  # there is none
        if (latest := session.with_name("session_latest")).readlink() == session:
            latest.unlink()


def _session_folder() -> Path | None:
    """Ray's, where this process started it."""
    import ray

    node = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) if node is not None and node.is_head() else None


def _shared_memory(processes: list) -> list[Path]:
    """The files that they have mapped there, by inode: a semaphore is mapped before it has its name."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):  # gone
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            inodes.update(map(int, re.findall(r"(\d+)\s+/dev/shm/", maps)))
    files = [file for file in Path("/dev/shm").glob("*") if SHARED_MEMORY.match(file.name)]
    return [file for file in files if file.exists() and file.stat().st_ino in inodes]
