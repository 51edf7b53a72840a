"""What `algorithm.adv_estimator=gpg` implies for the rest of veRL's config.

One word is enough: `settle` makes the config what GPG needs and reports what it changed. What the user set against
it is a contradiction, reported with the full key, the value and how to fix it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from gpg_verl.settings import TRAINER_MODES, GPGSettings, SettingError, verls_mode
from gpg_verl.training.shortcuts import unsupported, updates_per_batch

# How veRL is told to score with our reward functions.
REWARD_FNS = "pkg://reward_fns"
REWARD_MANAGER = {  # tells reward_fns whether an answer was cut off
    "source": "importlib",
    "name": "TruncationRewardManager",
    "module.path": "pkg://gpg_verl.reward_manager",
}

SEEDED_MANAGER = "gpg_verl.determinism.AgentLoopManagerSeeded"


OLD_REWARD = {
    "custom_reward_function.path": "reward.custom_reward_function.path",
    "reward_model.enable": "reward.reward_model.enable",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "sandbox_fusion.url": "reward.sandbox_fusion.url",
}

# Keys, and nodes with all below them, of other methods than GPG.
UNREAD = (
    *(f"algorithm.{key}" for key in ("gamma", "lam", "norm_adv_by_std_in_grpo", "use_pf_ppo", "pf_ppo")),
    "algorithm.rollout_correction.loss_type",
    *(f"actor_rollout_ref.actor.{key}" for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")),
    *(f"actor_rollout_ref.actor.{key}" for key in ("tau_pos", "tau_neg", "policy_loss")),
    "critic",
    "trainer.max_critic_ckpt_to_keep",
    "custom_reward_function",
    "reward_model",
    "sandbox_fusion",
)
UNREAD_WITHOUT_KL = (
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.actor.kl_loss_type",
    "actor_rollout_ref.ref",
    "algorithm.kl_ctrl",
    "algorithm.kl_penalty",
)
# Judged by themselves, above.
JUDGED = ("critic.enable", "actor_rollout_ref.actor.policy_loss.loss_mode", *OLD_REWARD)


@dataclass(frozen=True)
class Change:
    """One key that GPG set, with veRL's value before and GPG's after."""

    key: str
    before: Any
    after: Any
    why: str


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
    settled = Settled(config, typed_keys(overrides))
    settled.read_settings()
    settled.imply_the_method()
    settled.need_groups()
    settled.name_old_keys()
    if settled.settings.beta_th > 0:
        settled.refill()
    settled.take_our_trainer()
    if images:
        settled.load_the_checkpoint()
    settled.score_with_reward_fns()
    settled.seed_every_response()
    settled.drop_old_log_prob_pass()
    settled.say_what_stays()
    settled.say_what_is_not_read()
    return settled


@dataclass
class Settled:
    """A GPG run's config on its way to what GPG implies, and what `settle` found.

    settings: GPG's own.
    changes: the keys that were set.
    contradictions: what the user set against GPG.
    notices: what a user may want to know.
    """

    config: DictConfig
    typed: set[str]
    settings: GPGSettings = field(default_factory=GPGSettings)
    changes: list[Change] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def get(self, key: str) -> Any:
        return OmegaConf.select(self.config, key)

    def put(self, key: str, value: Any, why: str) -> None:
        self.changes.append(Change(key, self.get(key), value, why))
        with open_dict(self.config):
            OmegaConf.update(self.config, key, value, force_add=True)

    def imply(self, key: str, value: Any, default: Any, why: str, fix: str) -> None:
        """Puts the value where the key is unset (veRL's default and not typed); anything else is a contradiction."""
        current = self.get(key)
        if current == value:
            return
        if key in self.typed or current != default:
            self.contradictions.append(f"{key}={current} contradicts algorithm.adv_estimator=gpg ({why}): {fix}")
        else:
            self.put(key, value, why)

    def read_settings(self) -> None:
        try:
            self.settings = GPGSettings.from_node(self.get("algorithm.gpg"))
        except SettingError as error:
            self.contradictions.append(str(error))

    def imply_the_method(self) -> None:
        """GPG's loss, no critic, no KL."""
        actor = "actor_rollout_ref.actor"
        self.imply(
            f"{actor}.policy_loss.loss_mode",
            "gpg",
            "vanilla",
            "GPG has its own policy loss, −log π · Â",
            "leave the key out",
        )
        self.imply("critic.enable", False, None, "GPG has no critic", "leave the key out")
        if warmup := self.get("trainer.critic_warmup"):
            self.contradictions.append(
                f"trainer.critic_warmup={warmup} contradicts algorithm.adv_estimator=gpg: GPG has no critic to warm "
                f"up, and veRL does not update the actor before step {warmup}; leave the key out"
            )
        if not self.settings.allow_kl:
            why = "GPG has no KL term and starts no reference worker"
            fix = "set it to False, or keep it on purpose with +algorithm.gpg.allow_kl=True"
            self.imply(f"{actor}.use_kl_loss", False, False, why, fix)
            self.imply("algorithm.use_kl_in_reward", False, False, why, fix)

    def need_groups(self) -> None:
        """Responses to compare: several, and not the same one several times."""
        rollout = "actor_rollout_ref.rollout"
        n = self.get(f"{rollout}.n")
        if isinstance(n, bool) or not isinstance(n, int):
            self.contradictions.append(
                f"{rollout}.n={n!r} is not a whole number, and veRL counts with it as it stands; write {rollout}.n=8"
            )
        elif n < 2:
            self.contradictions.append(
                f"{rollout}.n={n}: a group of one has no gradient, GPG compares the n responses to one prompt; set "
                f"{rollout}.n to 2 or more (the paper uses 8)"
            )
        for key, greedy, fix in (
            ("temperature", 0, "set it above 0 (veRL's default is 1)"),
            ("top_k", 1, "set it to -1 (all tokens, veRL's default) or more than 1"),
            ("do_sample", False, "leave the key out"),
        ):
            if self.get(f"{rollout}.{key}") == greedy:
                self.contradictions.append(
                    f"{rollout}.{key}={greedy} contradicts algorithm.adv_estimator=gpg: greedy decoding gives a group "
                    f"one response n times, which has no gradient; {fix}"
                )

    def name_old_keys(self) -> None:
        """Older veRLs had what scores elsewhere. `main_ppo` composes those keys and does not read them (veRL 0.9.1)."""
        for old, new in OLD_REWARD.items():
            if value := self.get(old):
                self.contradictions.append(
                    f"{old}={value}: main_ppo does not read this key of older veRLs, so that reward would not score; "
                    f"write {new}={value}"
                )

    def refill(self) -> None:
        """β_th judges groups as they finish and decides which of them veRL samples; what else would do that, or hides
        the rewards until later, contradicts it.
        """
        set_to = f"algorithm.gpg.beta_th={self.settings.beta_th:g}"
        if self.get("algorithm.filter_groups.enable"):
            self.contradictions.append(
                f"algorithm.filter_groups.enable=True contradicts {set_to}: both refill a step. Set it to False; "
                "β_th=1 is its rule that a step has valid groups only"
            )
        model = "reward.reward_model"
        if self.get(f"{model}.enable") and not self.get(f"{model}.enable_resource_pool"):
            self.contradictions.append(
                f"{model}.enable=True contradicts {set_to}: a colocated reward model scores a batch only once it is "
                f"sampled. Give it devices of its own ({model}.enable_resource_pool=True), or leave beta_th at 0"
            )
        sampler = "trainer.v1.sampler.custom_sampler"
        if (path := self.get(f"{sampler}.path")) and self.get(f"{sampler}.name"):
            self.contradictions.append(
                f"{sampler}.path={path} contradicts {set_to}: β_th decides which groups are sampled. Leave the sampler "
                "out, or leave beta_th at 0"
            )
        if self.get("data.gen_batch_size") != 1:
            self.put("data.gen_batch_size", 1, "β_th asks for single prompts")

    def take_our_trainer(self) -> None:
        if not self.get("trainer.use_v1"):
            self.contradictions.append(
                "trainer.use_v1=False: GPG's step is built on veRL's V1 trainer; leave trainer.use_v1 at True"
            )
        mode = self.get("trainer.v1.trainer_mode")
        if mode in TRAINER_MODES:
            self.put("trainer.v1.trainer_mode", TRAINER_MODES[mode], "GPG's version of this mode")
        elif mode not in TRAINER_MODES.values():
            self.contradictions.append(f"trainer.v1.trainer_mode={mode}: GPG knows {', '.join(TRAINER_MODES)}")

    def load_the_checkpoint(self) -> None:
        """The rollout reads the checkpoint at its start instead of veRL's random weights, which the first weight sync
        replaces. What no checkpoint holds, no sync brings: vLLM 0.28 randomises the mean and deviation that it
        normalises images with. One reading of the files, and right for every engine, version and model.
        """
        key = "actor_rollout_ref.rollout.load_format"
        if self.get(key) != "dummy":
            return
        random = "dummy loading can leave the rollout's image normalisation random, and no weight sync brings it"
        if key in self.typed:
            self.notices.append(f"{key}=dummy: {random}; leave the key out, and it is auto")
        else:
            self.put(key, "auto", random)

    def score_with_reward_fns(self) -> None:
        """Our reward functions, where the user named nothing that scores."""
        named = (
            self.get("reward.custom_reward_function.path"),
            "reward.custom_reward_function.path" in self.typed,  # null on purpose: veRL's own scorer
            self.get("reward.reward_model.enable"),
            self.get("reward.sandbox_fusion.url"),
            self.get("reward.reward_manager.source") != "register",
        )
        if any(named):
            return
        why = "no reward was named: guarded scoring by data_source"
        self.put("reward.custom_reward_function.path", REWARD_FNS, why)
        if self.get("reward.reward_manager.name") == "naive":
            for key, value in REWARD_MANAGER.items():
                self.put(f"reward.reward_manager.{key}", value, "veRL's `naive`, which also says what was cut off")

    def seed_every_response(self) -> None:
        """veRL's full determinism gives every request of vLLM the same seed, so that a group's responses are all the
        same and nothing can be learned; see gpg_verl/determinism.py.
        """
        rollout = "actor_rollout_ref.rollout"
        if not self.get(f"{rollout}.full_determinism"):
            return
        key = f"{rollout}.agent.agent_loop_manager_class"
        if named := self.get(key):
            self.notices.append(
                f"{key}={named} has to give each response a seed of its own: {rollout}.full_determinism gives all of a "
                "group the same one, and so the same text"
            )
        elif OmegaConf.select(self.config, f"{rollout}.name", throw_on_missing=False) == "vllm":
            self.put(key, SEEDED_MANAGER, "under full_determinism veRL has one seed for all of a group's responses")
        if (mode := verls_mode(self.get("trainer.v1.trainer_mode"))) != "sync":
            self.notices.append(
                f"{rollout}.full_determinism=True repeats a run in trainer.v1.trainer_mode=sync only; in {mode} it is "
                "a question of time which weights sample a prompt"
            )

    def drop_old_log_prob_pass(self) -> None:
        """GPG has no importance ratio, so nothing reads the log-probs of a second forward pass over the batch, and
        veRL's `bypass_mode` is for that. Rollout correction needs the trainer's log-probs of the weights that sampled:
        before a batch's only update those are the update's own. Router replay records in that pass.
        """
        correction = "algorithm.rollout_correction"
        wanted = [
            f"{correction}.{key}={value}"
            for key in ("rollout_is", "rollout_rs")
            if (value := self.get(f"{correction}.{key}")) is not None
        ]
        if wanted:
            verl_updates = unsupported(self.config, ask_hub=False)["updates"]
            reasons = [
                (self._updates() > 1, "the batch has several updates"),
                (self.get(f"{correction}.rollout_is_batch_normalize"), "weights are normalised by batch"),
                (verl_updates, f"{verl_updates}"),
                (not self.get("actor_rollout_ref.rollout.calculate_log_probs"), "no rollout log-probs"),
            ]
            wanted = [f"{', '.join(wanted)}, and {reason}" for holds, reason in reasons if holds][:1]
        engine = "actor_rollout_ref.actor"
        wanted += [
            f"{engine}.{strategy}.router_replay.mode=R2"
            for strategy in ("megatron", "veomni")
            if self.get(f"{engine}.{strategy}.router_replay.mode") == "R2"
        ]
        bypass = f"{correction}.bypass_mode"
        if bypass in self.typed:
            wanted.append(f"{bypass}={self.get(bypass)}")
        if wanted:
            self.notices.append(f"the old-log-prob pass stays: {', '.join(wanted)}")
        elif self.get(bypass) is False:
            self.put(bypass, True, "GPG needs no old log-probs, so that pass is not run")

    def say_what_stays(self) -> None:
        """Updates beyond one, rows without gradient, entropy."""
        actor = "actor_rollout_ref.actor"
        if (updates := self._updates()) > 1:
            self.notices.append(
                f"{updates} updates per rollout batch; GPG as published is on-policy with one: set "
                f"{actor}.ppo_mini_batch_size={self.get('data.train_batch_size')} (= data.train_batch_size)"
                + (f" and {actor}.ppo_epochs=1" if self._epochs() > 1 else "")
            )
        known_mode = self.get("trainer.v1.trainer_mode") in TRAINER_MODES.values()
        reasons = unsupported(self.config, ask_hub=False)
        if known_mode and reasons["dropped_rows"] is not None:
            self.notices.append(f"rows of zero-variance groups go through the actor too: {reasons['dropped_rows']}")
        if known_mode and reasons["updates"] is None:
            for key, unset in (("shuffle", False), ("data_loader_seed", 42)):
                if self.get(f"{actor}.{key}") not in (unset, None):
                    self.notices.append(
                        f"{actor}.{key}={self.get(f'{actor}.{key}')} is not used: each of GPG's mini-batches is of "
                        "whole prompts, in the order of their random ids"
                    )
        if not self.get(f"{actor}.calculate_entropy"):
            self.notices.append(
                f"actor/entropy is not computed; {actor}.calculate_entropy=True shows it, without a gradient"
            )

    def say_what_is_not_read(self) -> None:
        """What the user typed for a method that this is not. Only typed keys are known to be meant."""
        unread = set(UNREAD)
        if not (self.get("actor_rollout_ref.actor.use_kl_loss") or self.get("algorithm.use_kl_in_reward")):
            unread.update(UNREAD_WITHOUT_KL)
        if self.settings.beta_th == 0:
            unread.add("algorithm.gpg.max_batches")
        found = sorted(key for key in self.typed if any(key == k or key.startswith(f"{k}.") for k in unread))
        found = [key for key in found if key not in JUDGED]
        if found:
            self.notices.append(f"typed, but GPG does not read it: {', '.join(found)}")
        if self.get("algorithm.filter_groups.enable") and self.settings.beta_th == 0:
            self.notices.append(
                "algorithm.filter_groups.enable=True: veRL drops groups of one reward and generates others before GPG "
                "counts, so gpg/valid_share, M and α are of what it keeps, and gpg/prompts_refilled stays 0; "
                "+algorithm.gpg.beta_th=1 instead of it asks for single prompts, and counts them"
            )

    def _updates(self) -> int:
        """Optimizer steps per sampled batch; 1 where the numbers are missing, which is reported elsewhere."""
        try:
            return updates_per_batch(self.config) * self._epochs()
        except (TypeError, ZeroDivisionError):
            return 1

    def _epochs(self) -> int:
        return self.get("actor_rollout_ref.actor.ppo_epochs") or 1
