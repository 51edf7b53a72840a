"""What a request leaves in veRL's load balancer, with and without ours (gpg_verl/guards/load_balancer.py).

    python tests/drills/load_balancer.py --requests 20000

Plain Ray, veRL's client and balancer, four servers that do nothing. Both balancers first get 12,000 requests,
past the 10,000 sessions that veRL's table keeps. 3 minutes on 2 cores, 2 GB. Exit code 1 if an answer leads elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time

import psutil
import ray
from verl.workers.rollout import router
from verl.workers.rollout.llm_server import LLMServerClient

from gpg_verl.guards.load_balancer import balancer_lean

FILLED = 12_000
AT_ONCE = 500


@ray.remote(num_cpus=0)
class Server:
    def process(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class Agent:
    """An agent-loop worker's part: asks for a server, and gives it back."""

    def __init__(self, balancer):
        self.client = LLMServerClient(None, balancer)
        self.asked = 0

    async def ask(self, requests: int) -> set[tuple[str, int]]:
        """Of the last ones: (server's name, its process as the handle leads there)."""

        async def one(number: int):
            name, server = await self.client._acquire_server(f"request {number}")
            self.client._release_server(name)
            return name, server

        last = []
        for _ in range(0, requests, AT_ONCE):
            last = await asyncio.gather(*(one(self.asked + i) for i in range(AT_ONCE)))
            self.asked += AT_ONCE
        return {(name, await server.process.remote()) for name, server in last[:20]}

    def process(self) -> int:
        return os.getpid()


def balancer_of(servers: dict, lean: bool):
    with balancer_lean() if lean else contextlib.nullcontext():
        return router.get_router_handle(servers=servers)


def megabytes(process: int) -> float:
    """Private to the process (USS)."""
    return psutil.Process(process).memory_full_info().uss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="a multiple of 500")
    args = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    servers = {f"server {i}": Server.remote() for i in range(4)}
    where = set(zip(servers, ray.get([server.process.remote() for server in servers.values()]), strict=True))
    wrong = False
    for lean in (False, True):
        balancer = balancer_of(servers, lean)
        agent = Agent.remote(balancer)
        processes = {
            "balancer": ray.get(balancer.__ray_call__.remote(lambda self: os.getpid())),
            "agent": ray.get(agent.process.remote()),
        }
        ray.get(agent.ask.remote(FILLED))
        before, began = {part: megabytes(process) for part, process in processes.items()}, time.time()
        led = ray.get(agent.ask.remote(args.requests))
        seconds = time.time() - began
        after = {part: megabytes(process) for part, process in processes.items()}
        grown = {part: f"{before[part]:.1f} to {after[part]:.1f} MB" for part in processes}
        each = 1e3 * (after["balancer"] - before["balancer"]) / args.requests
        print(
            f"{'ours' if lean else 'veRL':5} {args.requests} requests in {seconds:.0f} s: balancer "
            f"{grown['balancer']} ({each:.2f} kB a request), agent {grown['agent']}",
            flush=True,
        )
        wrong |= not led <= where
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
