"""The balancer that a run starts: veRL's answers, by a handle that is read once. tests/drills measures its memory."""

from __future__ import annotations

import pytest
import ray
from verl.workers.rollout import router
from verl.workers.rollout.llm_server import LLMServerClient

from gpg_verl.guards.load_balancer import balancer_lean


@ray.remote(num_cpus=0)
class Server:
    def __init__(self, name: str):
        self.name = name

    def says(self) -> str:
        return self.name


@ray.remote(num_cpus=0)
class Agent:
    """A process with veRL's client, as an agent-loop worker is."""

    def __init__(self, balancer):
        self.client = LLMServerClient(None, balancer)

    async def ask(self, requests: int) -> tuple[list[tuple[str, str]], int]:
        """([(the server's name, what the handle's actor says)], different handles)"""
        given = [await self.client._acquire_server(f"request {number}") for number in range(requests)]
        return [(name, await server.says.remote()) for name, server in given], len({id(server) for _, server in given})


@pytest.fixture(scope="module")
def servers():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield {name: Server.remote(name) for name in ("a", "b")}
    ray.shutdown()


def name_of_class(balancer) -> str:
    return ray.get(balancer.__ray_call__.remote(lambda self: type(self).__mro__[1].__name__))


@pytest.mark.parametrize("full_determinism", [False, True])
def test_answers_lead_to_the_named_server(servers, full_determinism):
    with balancer_lean():
        balancer = router.get_router_handle(servers=servers, full_determinism=full_determinism)
    assert name_of_class(balancer) == "GlobalRequestLoadBalancerLean"
    assert ray.get(balancer.__ray_call__.remote(lambda self: self._full_determinism)) is full_determinism
    agent = Agent.remote(balancer)
    answers, handles = ray.get(agent.ask.remote(20))
    assert {name for name, _ in answers} == {"a", "b"}
    assert all(name == said for name, said in answers)
    assert handles == 2
    late = Server.remote("late")
    ray.get(balancer.remove_servers.remote(["a", "b"]))
    ray.get(balancer.add_servers.remote({"late": late}))
    answers, _ = ray.get(agent.ask.remote(2))
    assert answers == [("late", "late")] * 2


def test_others_stay_as_they_are(servers):
    verls = router.GlobalRequestLoadBalancer
    with balancer_lean():
        given = router.get_router_handle(servers=servers, load_balancer_cls=verls)
    assert router.GlobalRequestLoadBalancer is verls
    for balancer in (given, router.get_router_handle(servers=servers)):
        assert name_of_class(balancer) == "GlobalRequestLoadBalancer"
