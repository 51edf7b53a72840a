"""What `algorithm.adv_estimator=gpg` implies for the rest of veRL's config.

One word is enough: `settle` makes the config what GPG needs and reports what it changed. What the user set against
it is a contradiction, reported with the full key, the value and how to fix it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from gpg_verl.settings import TRAINER_MODES, GPGSettings, SettingError, verls_mode
from gpg_verl.training.shortcuts import unsupported, updates_per_batch

ACTOR, ROLLOUT, CORRECTION = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm.rollout_correction"

# How veRL is told to score with our reward functions.
REWARD_FNS = "pkg://reward_fns"
REWARD_MANAGER = {  # tells reward_fns whether an answer was cut off
    "source": "importlib",
    "name": "TruncationRewardManager",
    "module.path": "pkg://gpg_verl.reward_manager",
}
SEEDED_MANAGER = "gpg_verl.determinism.AgentLoopManagerSeeded"

NO_KL = "GPG has no KL term and starts no reference worker"
ALLOW_KL = "set it to False, or keep it on purpose with +algorithm.gpg.allow_kl=True"
WARMUP = "GPG has no critic to warm up, and veRL does not update the actor before that step"
# (key, GPG's value, veRL's default, why, how to fix another value)
IMPLIED = (
    (
        f"{ACTOR}.policy_loss.loss_mode",
        "gpg",
        "vanilla",
        "GPG has its own policy loss, −log π · Â",
        "leave the key out",
    ),
    ("critic.enable", False, None, "GPG has no critic", "leave the key out"),
    ("trainer.critic_warmup", 0, 0, WARMUP, "leave the key out"),
    ("trainer.use_v1", True, True, "GPG's step is built on veRL's V1 trainer", "leave the key out"),
    (f"{ACTOR}.use_kl_loss", False, False, NO_KL, ALLOW_KL),
    ("algorithm.use_kl_in_reward", False, False, NO_KL, ALLOW_KL),
)
# (key, the value that contradicts, how to fix it)
GREEDY = (
    (f"{ROLLOUT}.temperature", 0, "set it above 0 (veRL's default is 1)"),
    (f"{ROLLOUT}.top_k", 1, "set it to -1 (all tokens, veRL's default) or more than 1"),
    (f"{ROLLOUT}.do_sample", False, "leave the key out"),
)
# β_th judges groups as they finish and decides which of them veRL samples; what else would do that, or hides the
# rewards until later, contradicts it.
COLOCATED, OWN_DEVICES = "reward.reward_model.enable", "reward.reward_model.enable_resource_pool"
AGAINST_REFILL = {
    "algorithm.filter_groups.enable": "both refill a step. Set it to False; β_th=1 is its rule that a step has valid "
    "groups only",
    COLOCATED: "a colocated reward model scores a batch only once it is sampled. Give it devices of its own "
    f"({OWN_DEVICES}=True), or leave beta_th at 0",
    "trainer.v1.sampler.custom_sampler.path": "β_th decides which groups are sampled. Leave the sampler out, or leave "
    "beta_th at 0",
}
# Older veRLs had what scores elsewhere. `main_ppo` composes those keys and does not read them (veRL 0.9.1).
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
    *(f"{ACTOR}.{key}" for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")),
    *(f"{ACTOR}.{key}" for key in ("tau_pos", "tau_neg", "policy_loss")),
    *(f"{CORRECTION}.loss_type", "critic", "trainer.max_critic_ckpt_to_keep"),
    *("custom_reward_function", "reward_model", "sandbox_fusion"),
)
UNREAD_WITHOUT_KL = (
    *(f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type", "actor_rollout_ref.ref"),
    *("algorithm.kl_ctrl", "algorithm.kl_penalty"),
)
# Each of GPG's mini-batches is of whole prompts, in the order of their random ids.
UNREAD_IN_OUR_UPDATES = (f"{ACTOR}.shuffle", f"{ACTOR}.data_loader_seed")
JUDGED = ("critic.enable", f"{ACTOR}.policy_loss.loss_mode", *OLD_REWARD)  # by themselves


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
        images: prompts may hold images that the rollout's dummy loading would spoil.
    """
    settled = Settled(config, typed_keys(overrides))
    settled.read_settings()
    settled.imply_the_method()
    settled.find_contradictions()
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
        return OmegaConf.select(self.config, key, throw_on_missing=False)

    def put(self, key: str, value: Any, why: str) -> None:
        self.changes.append(Change(key, self.get(key), value, why))
        with open_dict(self.config):
            OmegaConf.update(self.config, key, value, force_add=True)

    def contradicts(self, key: str, why: str, what: str = "contradicts algorithm.adv_estimator=gpg") -> None:
        self.contradictions.append(f"{key}={self.get(key)} {what}: {why}")

    def read_settings(self) -> None:
        try:
            self.settings = GPGSettings.from_node(self.get("algorithm.gpg"))
        except SettingError as error:
            self.contradictions.append(str(error))

    def imply_the_method(self) -> None:
        """GPG's loss, no critic, no KL: where the key is unset (veRL's default and not typed)."""
        for key, value, default, why, fix in IMPLIED:
            if self.get(key) == value or (why == NO_KL and self.settings.allow_kl):
                continue
            if key in self.typed or self.get(key) != default:
                self.contradicts(key, f"{why}; {fix}")
            else:
                self.put(key, value, why)

    def find_contradictions(self) -> None:
        n = self.get(f"{ROLLOUT}.n")
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            self.contradictions.append(
                f"{ROLLOUT}.n={n!r}: expected a whole number of 2 or more, as GPG compares the n responses to one "
                f"prompt, and a group of one has no gradient; the paper uses {ROLLOUT}.n=8"
            )
        for key, greedy, fix in GREEDY:
            if self.get(key) == greedy:
                why = "greedy decoding gives a group one response n times, which has no gradient"
                self.contradicts(key, f"{why}; {fix}")
        for old, new in OLD_REWARD.items():
            if value := self.get(old):
                why = "main_ppo does not read this key of older veRLs, so that reward would not score"
                self.contradictions.append(f"{old}={value}: {why}; write {new}={value}")
        if self.settings.beta_th > 0:
            for key, why in AGAINST_REFILL.items():
                if self.get(key) and not (key == COLOCATED and self.get(OWN_DEVICES)):
                    self.contradicts(key, why, f"contradicts algorithm.gpg.beta_th={self.settings.beta_th:g}")
            if self.get("data.gen_batch_size") != 1:
                self.put("data.gen_batch_size", 1, "β_th asks for single prompts")

    def take_our_trainer(self) -> None:
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
        key = f"{ROLLOUT}.load_format"
        random = "dummy loading can leave the rollout's image normalisation random, and no weight sync brings it"
        if self.get(key) == "dummy" and key in self.typed:
            self.notices.append(f"{key}=dummy: {random}; leave the key out, and it is auto")
        elif self.get(key) == "dummy":
            self.put(key, "auto", random)

    def score_with_reward_fns(self) -> None:
        """Our reward functions, where the user named nothing that scores."""
        path = "reward.custom_reward_function.path"
        scores = (path, "reward.reward_model.enable", "reward.sandbox_fusion.url")
        if path in self.typed or any(map(self.get, scores)) or self.get("reward.reward_manager.source") != "register":
            return  # a path that is null on purpose is veRL's own scorer
        self.put(path, REWARD_FNS, "no reward was named: guarded scoring by data_source")
        if self.get("reward.reward_manager.name") == "naive":
            for key, value in REWARD_MANAGER.items():
                self.put(f"reward.reward_manager.{key}", value, "veRL's `naive`, which also says what was cut off")

    def seed_every_response(self) -> None:
        """veRL's full determinism gives every request of vLLM the same seed, so that a group's responses are all the
        same and nothing can be learned; see gpg_verl/determinism.py.
        """
        if not self.get(f"{ROLLOUT}.full_determinism"):
            return
        key = f"{ROLLOUT}.agent.agent_loop_manager_class"
        if named := self.get(key):
            self.notices.append(
                f"{key}={named} has to give each response a seed of its own: {ROLLOUT}.full_determinism gives all of a "
                "group the same one, and so the same text"
            )
        elif self.get(f"{ROLLOUT}.name") == "vllm":
            self.put(key, SEEDED_MANAGER, "under full_determinism veRL has one seed for all of a group's responses")
        if (mode := verls_mode(self.get("trainer.v1.trainer_mode"))) != "sync":
            self.notices.append(
                f"{ROLLOUT}.full_determinism=True repeats a run in trainer.v1.trainer_mode=sync only; in {mode} it is "
                "a question of time which weights sample a prompt"
            )

    def drop_old_log_prob_pass(self) -> None:
        """GPG has no importance ratio, so nothing reads the log-probs of a second forward pass over the batch, and
        veRL's `bypass_mode` is for that. Rollout correction needs the trainer's log-probs of the weights that sampled:
        before a batch's only update those are the update's own. Router replay records in that pass.
        """
        bypass, normalised = f"{CORRECTION}.bypass_mode", f"{CORRECTION}.rollout_is_batch_normalize"
        corrected, wanted = self.named(f"{CORRECTION}.rollout_is", f"{CORRECTION}.rollout_rs"), []
        reasons = {
            "the batch has several updates": self.updates > 1,
            "weights are normalised by batch": self.get(normalised),
            self.unsupported["updates"]: self.unsupported["updates"],
            "no rollout log-probs": not self.get(f"{ROLLOUT}.calculate_log_probs"),
        }
        if corrected and any(reasons.values()):
            wanted = [f"{', '.join(corrected)}, and {next(filter(reasons.get, reasons))}"]
        replay = self.named(f"{ACTOR}.megatron.router_replay.mode", f"{ACTOR}.veomni.router_replay.mode")
        wanted += [mode for mode in replay if mode.endswith("=R2")]
        if bypass in self.typed:
            wanted += self.named(bypass)
        if wanted:
            self.notices.append(f"the old-log-prob pass stays: {', '.join(wanted)}")
        elif self.get(bypass) is False:
            self.put(bypass, True, "GPG needs no old log-probs, so that pass is not run")

    def named(self, *keys: str) -> list[str]:
        """`key=value` of those that are set."""
        return [f"{key}={self.get(key)}" for key in keys if self.get(key) is not None]

    @property
    def updates(self) -> int:
        """Optimizer steps per sampled batch."""
        return updates_per_batch(self.config) * self.get(f"{ACTOR}.ppo_epochs")

    @cached_property
    def unsupported(self) -> dict[str, str | None]:
        """Why the run goes without each of GPG's shortcuts."""
        return unsupported(self.config, ask_hub=False)

    def say_what_stays(self) -> None:
        """Updates beyond one, rows without gradient, entropy."""
        if self.updates > 1:
            self.notices.append(
                f"{self.updates} updates per rollout batch; GPG as published is on-policy with one: set "
                f"{ACTOR}.ppo_mini_batch_size={self.get('data.train_batch_size')} (= data.train_batch_size)"
                + (f" and {ACTOR}.ppo_epochs=1" if self.get(f"{ACTOR}.ppo_epochs") > 1 else "")
            )
        if why := self.unsupported["dropped_rows"]:
            self.notices.append(f"rows of zero-variance groups go through the actor too: {why}")
        if not self.get(f"{ACTOR}.calculate_entropy"):
            self.notices.append(
                f"actor/entropy is not computed; {ACTOR}.calculate_entropy=True shows it, without a gradient"
            )

    def say_what_is_not_read(self) -> None:
        """What the user typed for a method that this is not. Only typed keys are known to be meant."""
        unread = [*UNREAD]
        if not (self.get(f"{ACTOR}.use_kl_loss") or self.get("algorithm.use_kl_in_reward")):
            unread += UNREAD_WITHOUT_KL
        if self.settings.beta_th == 0:
            unread.append("algorithm.gpg.max_batches")
        if self.unsupported["updates"] is None:
            unread += UNREAD_IN_OUR_UPDATES
        meant = self.typed.difference(JUDGED)
        if found := sorted(key for key in meant if any(f"{key}.".startswith(f"{node}.") for node in unread)):
            self.notices.append(f"typed, but GPG does not read it: {', '.join(found)}")
        if self.get("algorithm.filter_groups.enable") and self.settings.beta_th == 0:
            self.notices.append(
                "algorithm.filter_groups.enable=True: veRL drops groups of one reward and generates others before GPG "
                "counts, so gpg/valid_share, M and α are of what it keeps, and gpg/prompts_refilled stays 0; "
                "+algorithm.gpg.beta_th=1 instead of it asks for single prompts, and counts them"
            )
