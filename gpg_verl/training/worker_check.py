"""Before step 1: which `gpg` would each actor worker compute the loss with?

A Ray node without this package has veRL's loss under the same name and would train with it, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

import gpg_verl

EXPECTED_MODULE = "gpg_verl.training.registry"


def make_probe():
    """The question, as a function that Ray ships by value: the asked process may not have this package."""

    def probe(_worker) -> dict:
        import socket

        answer = {"host": socket.gethostname(), "module": "none", "version": "none", "verl": "none"}
        try:
            import verl
            from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

            answer["verl"] = verl.__version__
            loss = POLICY_LOSS_REGISTRY["gpg"]
            answer["module"] = loss.__module__
            cause = getattr(loss, "cause", None)
            if cause is not None:
                answer["module"] += f" ({type(cause).__name__}: {cause})"
            import gpg_verl

            answer["version"] = gpg_verl.__version__
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        return answer

    return probe


def check_workers(workers: Sequence) -> str:
    """Asks every actor worker; returns one line for the log.

    Args:
        workers: Ray actor handles of the actor workers.

    Raises:
        RuntimeError: a worker has another implementation or another version behind `gpg`; names its node.
    """
    probe = make_probe()
    answers = ray.get([worker.__ray_call__.remote(probe) for worker in workers])
    wrong = [
        f"worker {rank} on node {answer['host']}: loss from {answer['module']}, gpg_verl {answer['version']}, "
        f"veRL {answer['verl']}" + (f", {answer['error']}" if "error" in answer else "")
        for rank, answer in enumerate(answers)
        if answer["module"] != EXPECTED_MODULE or answer["version"] != gpg_verl.__version__
    ]
    if wrong:
        raise RuntimeError(
            f"algorithm.adv_estimator=gpg stops before step 1: {len(wrong)} of {len(answers)} actor workers would not "
            f"train with gpg_verl {gpg_verl.__version__}: {'; '.join(wrong)}. Install the same gpg-verl on every Ray "
            "node, and do not set VERL_USE_EXTERNAL_PLUGINS=none."
        )
    return f"gpg_verl: all {len(answers)} actor workers answer `gpg` with gpg_verl {gpg_verl.__version__}"
