"""What a Ray can never place ends a run before anything is started, and what waits is told: with a small Ray."""

from __future__ import annotations

import time

import pytest
import ray

from gpg_verl.guards.exit import Runner
from gpg_verl.guards.placement import cannot_place, report_waits


@pytest.fixture(scope="module")
def two_cpus():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"


def test_a_ray_with_too_few_cpus_ends_the_run(two_cpus, tiny_config):
    with pytest.raises(SystemExit, match=r"this run cannot start\.\n  - too few CPUs for Ray: the run reserves 5,"):
        Runner(pytest.fail, tiny_config()).remote()


def nodes(*resources):
    return [{"Alive": True, "NodeManagerAddress": f"10.0.0.{i}", "Resources": r} for i, r in enumerate(resources)]


HEAD, NODE, WEAK = {"CPU": 0.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("there", "settings", "said"),
    [
        ([NODE], [], None),
        ([NODE, NODE], ["trainer.nnodes=2"], None),
        ([HEAD, NODE], [f"{UNITS}=8"], "the one at 10.0.0.0 has 0 CPUs"),
        ([HEAD, NODE], [f"{UNITS}=8", "transfer_queue.backend.SimpleStorage.required_node_resource=GPU"], None),
        ([{"CPU": 64.0}, WEAK], [f"{UNITS}=8"], "24 on each of 1 nodes, and Ray's nodes have 64, 8"),
        ([{"CPU": 64.0}], [], None),  # no GPU: veRL's own error
    ],
)
def test_where_a_cluster_has_its_cpus(tiny_config, monkeypatch, there, settings, said):
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*there))
    message = cannot_place(tiny_config("trainer.n_gpus_per_node=8", *settings))
    assert message is None if said is None else said in message


def test_what_waits_is_told_and_what_does_not_is_not(two_cpus, capfd):
    @ray.remote(num_cpus=1)
    class One:
        def ready(self):
            return True

    first = One.remote()
    ray.get(first.ready.remote())
    with report_waits(patience=0.5):
        time.sleep(1.5)
        assert "no room" not in capfd.readouterr().out
        group = ray.util.placement_group([{"CPU": 2}], name="workers")
        second, third = One.options(name="second").remote(), One.options(name="third").remote()
        ray.get(second.ready.remote())
        time.sleep(0.6)
        capfd.readouterr()  # a slow machine may have taken longer than the patience to start the second
        time.sleep(2.5)
        said = capfd.readouterr().out
    ray.util.remove_placement_group(group)
    parts = ("gpg_verl: Ray has had no room for 0.5 s", "placement group workers of 1 × {'CPU': 2.0}", "0 of 2 CPUs")
    assert [text for text in (*parts, "actor third") if text not in said] == []
    assert "second" not in said
    del first, second, third
