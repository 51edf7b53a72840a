"""GPG's settings (`algorithm.gpg`) and what `algorithm.adv_estimator=gpg` implies for the rest of veRL's config.

One word is enough: `settle` makes the config what GPG needs and reports what it changed. What the user set against
it is a contradiction, reported with the full key, the value and the way out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from gpg_verl.algorithm.updates import updates_per_batch, why_rows_stay, why_verl_updates

F_NORMS = ("1", "std")
ALPHAS = ("sample", "token", "none")

# veRL's V1 trainer modes and the names under which GPG's versions of them are registered. A name of its own means
# that a process without this package cannot answer with veRL's trainer: it stops with "Unknown trainer".
TRAINER_MODES = {mode: f"gpg_{mode}" for mode in ("sync", "colocate_async", "separate_async")}

# How veRL is told to score with our reward functions.
REWARD_FNS = "pkg://reward_fns"
REWARD_MANAGER = {  # tells reward_fns whether an answer was cut off
    "source": "importlib",
    "name": "TruncationRewardManager",
    "module.path": "pkg://gpg_verl.reward_manager",
}

SEEDED_MANAGER = "gpg_verl.determinism.AgentLoopManagerSeeded"


class SettingError(ValueError):
    """A setting of `algorithm.gpg` that is unknown or has a value that is not allowed."""


@dataclass(frozen=True)
class GPGSettings:
    """The node `algorithm.gpg`, given on the command line as `+algorithm.gpg.key=value`.

    f_norm: F_norm, the divisor of the centred reward: `1` (the paper's choice) or `std` (its ablation).
    alpha: α, the correction for samples without gradient: `sample` is the paper's B/(B−M), `token` the same ratio
        counted in response tokens (what the token-mean loss divides by), `none` is α = 1.
    beta_th: β_th, the share of valid groups below which a step asks for more prompts; 0 is off.
    max_batches: with β_th, a step is content with what it has after this many batches of prompts.
    allow_kl: accept KL terms that GPG does not have; they bring the reference worker back.
    drop_truncated: leave responses that reached the maximum length out of the loss. They stay in their groups' means
        and in B, M and the denominators.
    max_skipped_steps: so many steps in a row may have no valid group before the run ends with a message.
    max_dropped_share: share of a data set's rows that veRL's filter may drop before the run ends with a message.
    max_rollout_gap: how far the rollout's log-probs may be from the trainer's on rows with images when the run starts
        (root mean square, in nats); None: by the precision of the two.
    """

    f_norm: str = "1"
    alpha: str = "sample"
    beta_th: float = 0.0
    max_batches: int = 20
    allow_kl: bool = False
    drop_truncated: bool = False
    max_skipped_steps: int = 20
    max_dropped_share: float = 0.05
    max_rollout_gap: float | None = None

    @classmethod
    def from_node(cls, node: Mapping | None) -> GPGSettings:
        """Reads the node; raises SettingError with the full key, the value and the values allowed."""
        if node is None:
            return cls()
        if not isinstance(node, Mapping | DictConfig):
            raise SettingError(f"algorithm.gpg={node!r} is not a group of settings: use +algorithm.gpg.key=value")
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for key in node:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean algorithm.gpg.{close[0]}?" if close else ""
                raise SettingError(f"algorithm.gpg.{key} is unknown, known are {', '.join(known)}{hint}")
            values[key] = _READERS[key](node[key])
        return cls(**values)


def _one_of(key: str, allowed: tuple[str, ...]):
    def read(value: Any) -> str:
        # YAML reads `f_norm=1` as a number.
        text = str(int(value)) if isinstance(value, float) and value == 1 else str(value)
        if isinstance(value, bool) or text not in allowed:
            raise SettingError(f"algorithm.gpg.{key}={value!r}: allowed are {' and '.join(allowed)}")
        return text

    return read


def _share(key: str, zero: str):
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
            raise SettingError(f"algorithm.gpg.{key}={value!r}: a share from 0 ({zero}) to 1")
        return float(value)

    return read


def _gap(key: str):
    def read(value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise SettingError(f"algorithm.gpg.{key}={value!r}: a difference of log-probs above 0, inf for any")
        return float(value)

    return read


def _count(key: str):
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError(f"algorithm.gpg.{key}={value!r}: a whole number from 1")
        return value

    return read


def _flag(key: str):
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise SettingError(f"algorithm.gpg.{key}={value!r}: allowed are True and False")
        return value

    return read


_READERS = {
    "f_norm": _one_of("f_norm", F_NORMS),
    "alpha": _one_of("alpha", ALPHAS),
    "beta_th": _share("beta_th", "off"),
    "max_batches": _count("max_batches"),
    "allow_kl": _flag("allow_kl"),
    "drop_truncated": _flag("drop_truncated"),
    "max_skipped_steps": _count("max_skipped_steps"),
    "max_dropped_share": _share("max_dropped_share", "none"),
    "max_rollout_gap": _gap("max_rollout_gap"),
}


@dataclass(frozen=True)
class Change:
    """One key that GPG set, with veRL's value before and GPG's after."""

    key: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True)
class Settled:
    """What `settle` found: GPG's settings, the changes made, the contradictions and the notices."""

    settings: GPGSettings
    changes: list[Change]
    contradictions: list[str]
    notices: list[str]


def is_gpg(config: DictConfig) -> bool:
    """Whether the run's estimator is GPG."""
    return OmegaConf.select(config, "algorithm.adv_estimator") == "gpg"


def typed_keys(overrides: list[str] | None) -> set[str]:
    """The keys that the user typed, from Hydra's override list (`["+a.b=1", "~c"]` → `{"a.b", "c"}`)."""
    return {override.partition("=")[0].lstrip("+~") for override in overrides or []}


def settle(config: DictConfig, overrides: list[str] | None, images: bool = False) -> Settled:
    """Makes the composed config of a GPG run what GPG implies, in place.

    Args:
        config: veRL's composed config (`ppo_trainer`).
        overrides: what the user typed, as Hydra lists it. Only this tells a typed value from veRL's default; without
            it, values equal to veRL's defaults count as unset.
        images: prompts may hold images.
    """
    typed = typed_keys(overrides)
    changes: list[Change] = []
    contradictions: list[str] = []
    notices: list[str] = []

    def put(key: str, value: Any, why: str) -> None:
        changes.append(Change(key, OmegaConf.select(config, key), value, why))
        with open_dict(config):
            OmegaConf.update(config, key, value, force_add=True)

    def imply(key: str, value: Any, default: Any, why: str, way_out: str) -> None:
        current = OmegaConf.select(config, key)
        if current == value:
            return
        if key in typed or current != default:
            contradictions.append(f"{key}={current} contradicts algorithm.adv_estimator=gpg ({why}): {way_out}")
        else:
            put(key, value, why)

    try:
        settings = GPGSettings.from_node(OmegaConf.select(config, "algorithm.gpg"))
    except SettingError as error:
        contradictions.append(str(error))
        settings = GPGSettings()

    actor = "actor_rollout_ref.actor"
    imply(
        f"{actor}.policy_loss.loss_mode",
        "gpg",
        "vanilla",
        "GPG has its own policy loss, −log π · Â",
        "leave the key out",
    )
    imply("critic.enable", False, None, "GPG has no critic", "leave the key out")
    if not settings.allow_kl:
        why = "GPG has no KL term and starts no reference worker"
        way_out = "set it to False, or keep it on purpose with +algorithm.gpg.allow_kl=True"
        imply(f"{actor}.use_kl_loss", False, False, why, way_out)
        imply("algorithm.use_kl_in_reward", False, False, why, way_out)

    n = OmegaConf.select(config, "actor_rollout_ref.rollout.n")
    if not isinstance(n, int) or n < 2:
        contradictions.append(
            f"actor_rollout_ref.rollout.n={n}: a group of one has no gradient, GPG compares the n responses to one "
            "prompt; set actor_rollout_ref.rollout.n to 2 or more (the paper uses 8)"
        )
    if not OmegaConf.select(config, "trainer.use_v1"):
        contradictions.append(
            "trainer.use_v1=False: GPG's step is built on veRL's V1 trainer; leave trainer.use_v1 at True"
        )
    if settings.beta_th > 0:
        contradictions += _what_refilling_rules_out(config, settings.beta_th)
        if OmegaConf.select(config, "data.gen_batch_size") != 1:
            put("data.gen_batch_size", 1, "β_th asks for single prompts")
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    if mode in TRAINER_MODES:
        put("trainer.v1.trainer_mode", TRAINER_MODES[mode], "GPG's version of this mode")
    elif mode not in TRAINER_MODES.values():
        contradictions.append(f"trainer.v1.trainer_mode={mode}: GPG knows {', '.join(TRAINER_MODES)}")

    if images:
        _load_the_checkpoint(config, typed, put, notices)
    _score_with_reward_fns(config, put)
    _seed_every_response(config, mode, put, notices)
    _drop_old_log_prob_pass(config, typed, put, notices)
    _count_updates(config, notices)
    if mode in TRAINER_MODES and (reason := why_rows_stay(config)) is not None:
        notices.append(f"rows of zero-variance groups go through the actor too: {reason}")
    if not OmegaConf.select(config, f"{actor}.calculate_entropy"):
        notices.append(f"actor/entropy is not computed; {actor}.calculate_entropy=True shows it, without a gradient")
    return Settled(settings, changes, contradictions, notices)


def _load_the_checkpoint(config: DictConfig, typed: set[str], put, notices: list[str]) -> None:
    """The rollout reads the checkpoint at its start instead of veRL's random weights, which the first weight sync
    replaces. What no checkpoint holds, no sync brings: vLLM 0.28 randomises the mean and deviation that it normalises
    images with. One reading of the files, and right for every engine, version and model.
    """
    key = "actor_rollout_ref.rollout.load_format"
    if OmegaConf.select(config, key) != "dummy":
        return
    random = "dummy loading can leave the rollout's image normalisation random, and no weight sync brings it"
    if key in typed:
        notices.append(f"{key}=dummy: {random}; leave the key out, and it is auto")
    else:
        put(key, "auto", random)


def _seed_every_response(config: DictConfig, mode: str, put, notices: list[str]) -> None:
    """veRL's full determinism gives every request of vLLM the same seed, so that a group's responses are all the same
    and nothing can be learned; see gpg_verl/determinism.py.
    """
    rollout = "actor_rollout_ref.rollout"
    if not OmegaConf.select(config, f"{rollout}.full_determinism"):
        return
    key = f"{rollout}.agent.agent_loop_manager_class"
    if named := OmegaConf.select(config, key):
        notices.append(
            f"{key}={named} has to give each response a seed of its own: {rollout}.full_determinism gives all of a "
            "group the same one, and so the same text"
        )
    elif OmegaConf.select(config, f"{rollout}.name", throw_on_missing=False) == "vllm":
        put(key, SEEDED_MANAGER, "under full_determinism veRL has one seed for all of a group's responses")
    if mode not in ("sync", TRAINER_MODES["sync"]):
        notices.append(
            f"{rollout}.full_determinism=True repeats a run in trainer.v1.trainer_mode=sync only; in {mode} it is a "
            "question of time which weights sample a prompt"
        )


def _score_with_reward_fns(config: DictConfig, put) -> None:
    """Our reward functions, where the user named nothing that scores."""
    named = (
        OmegaConf.select(config, "reward.custom_reward_function.path"),
        OmegaConf.select(config, "reward.reward_model.enable"),
        OmegaConf.select(config, "reward.sandbox_fusion.url"),
        OmegaConf.select(config, "reward.reward_manager.source") != "register",
    )
    if not any(named):
        put(
            "reward.custom_reward_function.path",
            REWARD_FNS,
            "no reward was named: guarded scoring by data_source",
        )
        if OmegaConf.select(config, "reward.reward_manager.name") == "naive":
            for key, value in REWARD_MANAGER.items():
                put(f"reward.reward_manager.{key}", value, "veRL's `naive`, which also says what was cut off")


def _what_refilling_rules_out(config: DictConfig, beta_th: float) -> list[str]:
    """β_th judges groups as they finish and decides which of them veRL samples; what else would do that, or hides the
    rewards until later, contradicts it.
    """
    set_to = f"algorithm.gpg.beta_th={beta_th:g}"
    found = []
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        found.append(
            f"algorithm.filter_groups.enable=True contradicts {set_to}: both refill a step. Set it to False; β_th=1 is "
            "its rule that a step has valid groups only"
        )
    model = "reward.reward_model"
    if OmegaConf.select(config, f"{model}.enable") and not OmegaConf.select(config, f"{model}.enable_resource_pool"):
        found.append(
            f"{model}.enable=True contradicts {set_to}: a colocated reward model scores a batch only once it is "
            f"sampled. Give it devices of its own ({model}.enable_resource_pool=True), or leave beta_th at 0"
        )
    sampler = "trainer.v1.sampler.custom_sampler"
    if (path := OmegaConf.select(config, f"{sampler}.path")) and OmegaConf.select(config, f"{sampler}.name"):
        found.append(
            f"{sampler}.path={path} contradicts {set_to}: β_th decides which groups are sampled. Leave the sampler "
            "out, or leave beta_th at 0"
        )
    return found


def _drop_old_log_prob_pass(config: DictConfig, typed: set[str], put, notices: list[str]) -> None:
    """GPG has no importance ratio, so nothing reads the log-probs of a second forward pass over the batch, and veRL's
    `bypass_mode` is for that. Rollout correction needs the trainer's log-probs of the weights that sampled: before a
    batch's only update those are the update's own. Router replay records in that pass.
    """
    correction = "algorithm.rollout_correction"
    wanted = [
        f"{correction}.{key}={value}"
        for key in ("rollout_is", "rollout_rs")
        if (value := OmegaConf.select(config, f"{correction}.{key}")) is not None
    ]
    if wanted:
        reasons = [
            (_updates(config) > 1, "the batch has several updates"),
            (OmegaConf.select(config, f"{correction}.rollout_is_batch_normalize"), "weights are normalised by batch"),
            (why_verl_updates(config), f"{why_verl_updates(config)}"),
            (not OmegaConf.select(config, "actor_rollout_ref.rollout.calculate_log_probs"), "no rollout log-probs"),
        ]
        wanted = [f"{', '.join(wanted)}, and {reason}" for holds, reason in reasons if holds][:1]
    engine = "actor_rollout_ref.actor"
    wanted += [
        f"{engine}.{strategy}.router_replay.mode=R2"
        for strategy in ("megatron", "veomni")
        if OmegaConf.select(config, f"{engine}.{strategy}.router_replay.mode") == "R2"
    ]
    if f"{correction}.bypass_mode" in typed:
        wanted.append(f"{correction}.bypass_mode={OmegaConf.select(config, f'{correction}.bypass_mode')}")
    if wanted:
        notices.append(f"the old-log-prob pass stays: {', '.join(wanted)}")
    elif OmegaConf.select(config, f"{correction}.bypass_mode") is False:
        put(f"{correction}.bypass_mode", True, "GPG needs no old log-probs, so that pass is not run")


def _updates(config: DictConfig) -> int:
    """Optimizer steps per sampled batch; 1 where the numbers are missing, which is reported elsewhere."""
    epochs = OmegaConf.select(config, "actor_rollout_ref.actor.ppo_epochs") or 1
    try:
        return updates_per_batch(config) * epochs
    except (TypeError, ZeroDivisionError):
        return 1


def _count_updates(config: DictConfig, notices: list[str]) -> None:
    if (updates := _updates(config)) > 1:
        batch = OmegaConf.select(config, "data.train_batch_size")
        epochs = OmegaConf.select(config, "actor_rollout_ref.actor.ppo_epochs") or 1
        notices.append(
            f"{updates} updates per rollout batch; GPG as published is on-policy with one: set "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={batch} (= data.train_batch_size)"
            + (" and actor_rollout_ref.actor.ppo_epochs=1" if epochs > 1 else "")
        )
