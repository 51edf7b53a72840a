"""`python -I -S fork_client.py ARGUMENT...` stands in for `python ARGUMENT...` where Ray starts a worker, or a worker a
process by multiprocessing's spawn: it asks the node's fork server for the process, lends it this one's files,
environment and folder, and ends as it ends.

Nothing but the standard library, and little of it: what this process costs, each worker of a run pays for. Where the
server is gone or does not answer, Python itself is started instead: the process then imports for itself.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys

RAYLET = "--raylet-name="  # the argument by which a worker learns of its raylet's socket
ADDRESS = "GPG_FORK_SERVER"  # by which a worker's own processes find the server
SPAWNED = "--multiprocessing-fork"  # the last argument of a spawned process, but of no other of multiprocessing's
MOST_FILES = 64
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SIZE = 8  # bytes of a number on the socket


def main(arguments: list[str]) -> None:
    raylet = next((text.removeprefix(RAYLET) for text in arguments if text.startswith(RAYLET)), None)
    address = f"{os.path.dirname(raylet)}/fork_server" if raylet else os.environ.get(ADDRESS)
    if address and (raylet or SPAWNED in arguments):
        with connected(address) as (server, started):
            if child := ask(server, arguments, None if raylet else open_files()):
                code = stand_for(child, server)
                if started:  # so all that came of it can be found below the raylet
                    os.waitpid(started, 0)
                end_with(code)
    os.execv(sys.executable, [sys.executable, *arguments])


@contextlib.contextmanager
def connected(address: str):
    """A connection to the server at `address`, and the server's process id for the first who asks, who starts it."""
    started = 0
    with socket.socket(socket.AF_UNIX) as server:
        with contextlib.suppress(OSError), open(f"{address}.lock", "w") as lock:  # it has ended, or cannot be started
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(address):
                started = start_server(address)
            server.connect(address)
        yield server, started


def start_server(address: str) -> int:
    """Binds and listens before the server has imported anything, so that whoever comes meanwhile only waits."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # where a worker dies, its raylet kills the worker's group
            os.dup2(listener.fileno(), 0)
            os.closerange(3, MOST_FILES * 16)
            command = "import sys; sys.path.remove(''); from gpg_verl.cpu.fork_server import main; main()"
            # Long enough for the titles that Ray and vLLM give their processes, which take the arguments' place.
            os.execv(sys.executable, [sys.executable, "-c", command, address])
    return child


def ask(server: socket.socket, arguments: list[str], files: list[int] | None) -> int:
    """The id of the process that the server has forked for these arguments; 0 where it cannot.

    Args:
        files: whose numbers are this process's and the new one's; the standard ones where None.
    """
    files = [number for number in files or (0, 1, 2) if number != server.fileno()]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": files,
        "group": os.getpgrp(),
    }
    message = json.dumps(request).encode()
    try:
        socket.send_fds(server, [len(message).to_bytes(SIZE, "big")], files)
        server.sendall(message)
        child = int.from_bytes(server.recv(SIZE), "big")
    except OSError:  # it has ended
        return 0
    if child:
        os.closerange(3, server.fileno())  # their last end tells others that the process has ended
        os.closerange(server.fileno() + 1, 1 + max(server.fileno(), *files))
    return child


def open_files() -> list[int]:
    """The numbers of this process's open files."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))
    return [number for number in numbers if os.path.exists(f"/proc/self/fd/{number}")]  # not the listing's own


def stand_for(child: int, server: socket.socket) -> int:
    """Waits for the child's end, and hands on signals meanwhile; its exit code, negative for a signal."""

    def hand_on(number, frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, hand_on)
    with contextlib.suppress(OSError):
        if answer := server.recv(SIZE):
            return int.from_bytes(answer, "big", signed=True)
    return 1


def end_with(code: int) -> None:
    if code < 0:
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
