"""veRL's load balancer without the 0.7 kB that each request leaves in it.

It answers a request with the actor handle of a server (veRL 0.9.1), and an actor that returns a handle keeps a record
of each time (Ray 2.60). Here the handle goes out as bytes, which the client's process turns into a handle once a
server: veRL's client gets the same answer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import ray
from ray.actor import ActorHandle
from verl.workers.rollout import router
from verl.workers.rollout.router import GlobalRequestLoadBalancer

from gpg_verl.compat.seams import replaced, seam


class WrittenHandle:
    """An actor handle that is sent as bytes, and is a handle where it is received."""

    def __init__(self, handle: ActorHandle):
        self.bytes = ray.cloudpickle.dumps(handle)

    def __reduce__(self):
        return read, (self.bytes,)


@functools.cache
def written(handle: ActorHandle) -> WrittenHandle:
    return WrittenHandle(handle)


@functools.cache
def read(data: bytes) -> ActorHandle:
    return ray.cloudpickle.loads(data)


class GlobalRequestLoadBalancerLean(GlobalRequestLoadBalancer):
    """veRL's, whose answers leave nothing behind."""

    def acquire_server(self, request_id: str) -> tuple[str, WrittenHandle]:
        server_id, handle = super().acquire_server(request_id)
        return server_id, written(handle)


@contextlib.contextmanager
def balancer_lean() -> Iterator[None]:
    """While it lasts, veRL starts the lean balancer where it would start its own; a router of the user's stays.

    veRL has a seam for the balancer's class, but hands `rollout.full_determinism` to no other than its own (0.9.1).
    """
    seam(GlobalRequestLoadBalancer, "acquire_server", ("self", "request_id"))
    with replaced(router, "GlobalRequestLoadBalancer", GlobalRequestLoadBalancerLean):
        yield
