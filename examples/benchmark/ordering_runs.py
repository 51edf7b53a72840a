"""Runs one after another on one start of Ray, vLLM and FSDP, which costs more than ten short steps.

    python examples/benchmark/ordering_runs.py RUN [RUN ...]

RUN/arguments.txt has the run's veRL settings, one a line. Each run has a trainer, data and an optimizer of its own and
begins with the model's first weights; metrics and RUN/finished are written into its folder. Model, rollout, batch and
processes are the first run's for all. What may differ is the method, the data, its seed, the learning rate and its
schedule.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["VERL_PLATFORM"] = "cpu"

import ray
import verl  # noqa: F401  loads the plugin
from omegaconf import DictConfig, OmegaConf
from verl.trainer.main_ppo import run_ppo

# What GPG's trainer has asked the engine, which stays the same.
CHECKED = ("unsupported", "passes_checked")


def read(folder: Path, more: tuple[str, ...] = ()) -> DictConfig:
    """The run's config, as `verl.trainer.main_ppo` would have it with `more` behind its settings."""
    from gpg_verl.launch.check import compose
    from gpg_verl.launch.settle import settle
    from gpg_verl.settings import is_gpg

    overrides = [*(folder / "arguments.txt").read_text().splitlines(), *more]
    config = compose(overrides)
    if is_gpg(config):
        settle(config, overrides)
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    return config


def begin_again(worker, actor: DictConfig) -> None:
    """In the actor's process: the first weights, a new optimizer, and the run's own loss."""
    from functools import partial

    import torch
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    (inner,) = worker.worker_dict.values()
    training, engine = inner.actor, inner.actor.engine
    config = omega_conf_to_dataclass(actor)
    config.model_config = training.loss_fn.keywords["config"].model_config
    training.set_loss_fn(partial(ppo_loss, config=config))
    if not hasattr(engine, "first_weights"):
        engine.first_weights = [parameter.detach().clone() for parameter in engine.module.parameters()]
    with torch.no_grad():
        for parameter, first in zip(engine.module.parameters(), engine.first_weights, strict=True):
            parameter.copy_(first)
    engine.optimizer_config = config.optim
    engine.optimizer = engine._build_optimizer(engine.module)
    engine.lr_scheduler = engine._build_lr_scheduler(engine.optimizer)


@ray.remote
class Runs:
    """In place of veRL's TaskRunner."""

    def __init__(self, folders: list[Path], configs: list[DictConfig]):
        self.runs = list(zip(folders, configs, strict=True))

    def run(self, config: DictConfig):
        import transfer_queue as tq
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls

        tq.init(config.transfer_queue)
        try:
            first = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
            first.init()
            engine = dict(vars(first))
            loops = AgentLoopManagerTQ.create(
                config=config,
                llm_client=first.get_llm_client(),
                teacher_client=first.get_teacher_client(),
                reward_loop_worker_handles=first.get_reward_handles(),
            )
            for folder, of_run in self.runs:
                os.environ["VERL_FILE_LOGGER_PATH"] = str(folder.resolve() / "metrics.jsonl")
                trainer = get_trainer_cls(of_run.trainer.v1.trainer_mode)(config=of_run)
                for name, value in engine.items():
                    if name not in vars(trainer) or name in CHECKED:
                        setattr(trainer, name, value)
                trainer._init_dataloader()
                trainer._init_dump_executor()
                actor = of_run.actor_rollout_ref.actor
                ray.get([worker.__ray_call__.remote(begin_again, actor) for worker in trainer.actor_rollout_wg.workers])
                trainer.on_init_end()
                trainer.fit(loops)
                engine |= {name: value for name, value in vars(trainer).items() if name in CHECKED}
                trainer.logger.finish(exit_code=0)
                (folder / "finished").touch()
        finally:
            tq.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder with arguments.txt")
    folders = parser.parse_args().runs
    configs = [read(folder) for folder in folders]
    engine = read(folders[0], more=("algorithm.adv_estimator=gpg",))  # GPG's actor runs veRL's updates too
    run_ppo(engine, SimpleNamespace(remote=lambda: Runs.remote([f.resolve() for f in folders], configs)))


if __name__ == "__main__":
    main()
