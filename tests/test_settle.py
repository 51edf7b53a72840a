"""What `algorithm.adv_estimator=gpg` implies, and what contradicts it: tables over veRL's real, composed config."""

import pytest
import verl  # noqa: F401  loads the plugin, which makes the presets known
from omegaconf import OmegaConf

from gpg_verl.launch.check import compose
from gpg_verl.launch.settle import SEEDED_MANAGER, settle, typed_keys
from gpg_verl.settings import GPGSettings, SettingError

ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
GRPO_COMMAND = [
    "data.train_batch_size=64",
    f"{ACTOR}.ppo_mini_batch_size=64",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
]
GPG = ["algorithm.adv_estimator=gpg", *GRPO_COMMAND]


def settled(*overrides, typed=True, images=False):
    """The config of a GPG run with these, and what `settle` found."""
    config = compose([*GPG, *overrides])
    return config, settle(config, [*GPG, *overrides] if typed else None, images)


def test_one_word_is_enough():
    config, result = settled()
    assert result.contradictions == []
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gpg"
    assert config.critic.enable is False
    assert config.actor_rollout_ref.actor.use_kl_loss is False
    assert config.algorithm.use_kl_in_reward is False
    assert config.algorithm.rollout_correction.bypass_mode is True
    assert config.trainer.v1.trainer_mode == "gpg_sync"
    assert result.settings == GPGSettings(f_norm="1", alpha="sample", beta_th=0.0, allow_kl=False)


@pytest.mark.parametrize(
    ("override", "images", "load_format", "said"),
    [
        ("data.seed=1", False, "dummy", None),
        ("data.seed=1", True, "auto", "changes"),
        ("actor_rollout_ref.rollout.load_format=safetensors", True, "safetensors", None),
        ("actor_rollout_ref.rollout.load_format=dummy", True, "dummy", "notices"),
    ],
)
def test_where_prompts_hold_images_the_rollout_loads_the_checkpoint(override, images, load_format, said):
    config, result = settled(override, images=images)
    assert config.actor_rollout_ref.rollout.load_format == load_format
    for kind in ("changes", "notices"):
        assert any("image normalisation" in str(entry) for entry in getattr(result, kind)) == (kind == said)
    assert result.contradictions == []


FULL = f"{ROLLOUT}.full_determinism=True"
ONE_SEED, OWN_SEED, SYNC = "one seed for all of a group's responses", "a seed of its own", "trainer_mode=sync only"


@pytest.mark.parametrize(
    ("overrides", "manager", "said"),
    [
        (f"{ROLLOUT}.seed=1", None, []),
        (FULL, SEEDED_MANAGER, [ONE_SEED]),
        (f"{FULL} {ROLLOUT}.name=sglang", None, []),  # where veRL seeds no request
        (f"{FULL} +{ROLLOUT}.agent.agent_loop_manager_class=my.Manager", "my.Manager", [OWN_SEED]),
        (f"{FULL} trainer.v1.trainer_mode=colocate_async", SEEDED_MANAGER, [ONE_SEED, SYNC]),
    ],
)
def test_full_determinism_seeds_every_response(overrides, manager, said):
    config, result = settled(*overrides.split())
    assert OmegaConf.select(config, f"{ROLLOUT}.agent.agent_loop_manager_class") == manager
    told = "\n".join([*result.notices, *(change.why for change in result.changes)])
    assert [text for text in (ONE_SEED, OWN_SEED, SYNC) if text in told] == said
    assert result.contradictions == []


def test_only_what_gpg_implies_changes():
    config, result = settled()
    untouched = compose(GPG)
    for change in result.changes:
        assert OmegaConf.select(untouched, change.key) == change.before
        OmegaConf.update(untouched, change.key, change.after)
    assert config == untouched


CONTRADICTIONS = [  # what is typed, what the message says of it, and how to fix it
    (f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.use_kl_loss=True", "allow_kl=True"),
    ("algorithm.use_kl_in_reward=True", "algorithm.use_kl_in_reward=True", "allow_kl=True"),
    ("critic.enable=True", "critic.enable=True", "leave the key out"),
    (f"{ACTOR}.policy_loss.loss_mode=vanilla", "loss_mode=vanilla", "leave the key out"),
    (f"{ACTOR}.policy_loss.loss_mode=clip_cov", "loss_mode=clip_cov", "leave the key out"),
    ("trainer.critic_warmup=5", "trainer.critic_warmup=5 contradicts", "leave the key out"),
    ("trainer.use_v1=False", "trainer.use_v1=False contradicts", "leave the key out"),
    ("trainer.v1.trainer_mode=mine", "trainer.v1.trainer_mode=mine", "sync"),
    (f"{ROLLOUT}.n=1", f"{ROLLOUT}.n=1", "2 or more"),
    (f"{ROLLOUT}.n=8.0", f"{ROLLOUT}.n=8.0: expected a whole number of 2 or more", f"{ROLLOUT}.n=8"),
    (f"{ROLLOUT}.n='8'", f"{ROLLOUT}.n='8': expected a whole number of 2 or more", f"{ROLLOUT}.n=8"),
    (f"{ROLLOUT}.n=True", f"{ROLLOUT}.n=True: expected a whole number of 2 or more", f"{ROLLOUT}.n=8"),
    (f"{ROLLOUT}.temperature=0", f"{ROLLOUT}.temperature=0 contradicts", "set it above 0"),
    (f"{ROLLOUT}.temperature=0.0", "one response n times", "set it above 0"),
    (f"{ROLLOUT}.top_k=1", f"{ROLLOUT}.top_k=1 contradicts", "set it to -1"),
    (f"{ROLLOUT}.do_sample=False", f"{ROLLOUT}.do_sample=False contradicts", "leave the key out"),
    ("custom_reward_function.path=a.py", "does not read this key", "write reward.custom_reward_function.path=a.py"),
    ("reward_model.reward_manager=dapo", "does not read this key", "write reward.reward_manager.name=dapo"),
    ("+algorithm.gpg.alfa=sample", "algorithm.gpg.alfa", "did you mean algorithm.gpg.alpha?"),
    ("+algorithm.gpg.f_norm=2", "algorithm.gpg.f_norm=2", "1 and std"),
    ("+algorithm.gpg.alpha=batch", "algorithm.gpg.alpha='batch'", "sample and token and none"),
    ("+algorithm.gpg.beta_th=1.5", "algorithm.gpg.beta_th=1.5", "from 0 (off) to 1"),
    ("+algorithm.gpg.max_batches=0", "algorithm.gpg.max_batches=0", "a whole number from 1"),
    ("+algorithm.gpg.allow_kl=maybe", "algorithm.gpg.allow_kl='maybe'", "True and False"),
    ("+algorithm.gpg=on", "algorithm.gpg='on'", "+algorithm.gpg.key=value"),
]


@pytest.mark.parametrize(("override", "said", "way_out"), CONTRADICTIONS)
def test_contradictions_name_key_value_and_way_out(override, said, way_out):
    (contradiction,) = settled(override)[1].contradictions
    assert said in contradiction
    assert way_out in contradiction


SAMPLER = "trainer.v1.sampler.custom_sampler"
MODEL = "reward.reward_model"


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        ("algorithm.filter_groups.enable=True algorithm.filter_groups.metric=reward", "Set it to False"),
        (f"{MODEL}.enable=True", "enable_resource_pool=True"),
        (f"{SAMPLER}.path=mine.py {SAMPLER}.name=Mine", "Leave the sampler out"),
        (f"{MODEL}.enable=True {MODEL}.enable_resource_pool=True", None),
    ],
)
def test_what_beta_th_rules_out(overrides, way_out):
    assert settled(*overrides.split())[1].contradictions == []
    found = settled("+algorithm.gpg.beta_th=0.6", *overrides.split())[1].contradictions
    assert len(found) == (way_out is not None)
    for contradiction in found:
        assert f"{overrides.split()[0]} contradicts algorithm.gpg.beta_th=0.6" in contradiction
        assert way_out in contradiction


@pytest.mark.parametrize("typed", [[], ["+data.gen_batch_size=8"], ["+data.gen_batch_size=1"]])
def test_beta_th_asks_for_single_prompts(typed):
    config, result = settled("+algorithm.gpg.beta_th=0.6", *typed)
    assert result.contradictions == []
    assert config.data.gen_batch_size == 1
    assert any(change.key == "data.gen_batch_size" for change in result.changes) == (
        "gen_batch_size=1" not in str(typed)
    )
    without, _ = settled(*typed)
    assert without.data.get("gen_batch_size") == compose([*GPG, *typed]).data.get("gen_batch_size")


def test_without_an_override_list_values_at_verls_default_count_as_unset():
    config, result = settled(f"{ACTOR}.policy_loss.loss_mode=vanilla", typed=False)
    assert result.contradictions == []
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gpg"


def test_reward_fns_score_where_no_reward_is_named():
    from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls

    config, _ = settled("+reward.custom_reward_function.reward_kwargs.last_number=True")
    assert config.reward.custom_reward_function.path == "pkg://reward_fns"
    assert resolve_reward_manager_cls(config).__name__ == "TruncationRewardManager"
    score = get_custom_reward_fn(config)
    assert score(data_source="openai/gsm8k", solution_str="A: 5", ground_truth="5")["score"] == 1.0


@pytest.mark.parametrize(
    "override",
    [
        "reward.custom_reward_function.path=mine.py",
        "reward.custom_reward_function.path=null",  # veRL's own scorer, on purpose
        "reward.reward_model.enable=True",
        "reward.sandbox_fusion.url=http://sandbox",
        "reward.reward_manager.source=importlib",
    ],
)
def test_a_reward_that_the_user_named_stays(override):
    config, result = settled(override)
    assert config.reward == compose([*GPG, override]).reward
    assert not any(change.key.startswith("reward.") for change in result.changes)


@pytest.mark.parametrize(
    ("override", "notice"),
    [
        (f"{ACTOR}.ppo_mini_batch_size=16", "4 updates per rollout batch"),
        (f"{ACTOR}.ppo_epochs=2", "2 updates per rollout batch"),
        ("algorithm.rollout_correction.bypass_mode=False", "bypass_mode=False"),
        ("trainer.total_epochs=1", "actor/entropy is not computed"),
        ("algorithm.filter_groups.enable=True", "+algorithm.gpg.beta_th=1 instead of it asks for single prompts"),
        (f"{ACTOR}.entropy_coeff=0.1", "rows of zero-variance groups go through the actor too"),
    ],
)
def test_notices(override, notice):
    _, result = settled(override)
    assert result.contradictions == []
    assert any(notice in line for line in result.notices), result.notices
    assert settled(f"{ACTOR}.calculate_entropy=True")[1].notices == []


IS = "algorithm.rollout_correction.rollout_is=token"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], None),
        ([f"{ACTOR}.ppo_mini_batch_size=16"], None),
        ([f"{ACTOR}.use_kl_loss=True", "+algorithm.gpg.allow_kl=True"], None),  # KL on purpose
        ([IS], None),  # the weights come from the update's own log-probs
        ([IS, f"{ACTOR}.ppo_mini_batch_size=16"], "the batch has several updates"),
        ([IS, "algorithm.rollout_correction.rollout_is_batch_normalize=True"], "normalised by batch"),
        ([IS, f"{ROLLOUT}.calculate_log_probs=False"], "no rollout log-probs"),
        (["+actor_rollout_ref.actor.megatron.router_replay.mode=R2"], "router_replay.mode=R2"),
        (["algorithm.rollout_correction.bypass_mode=False"], "bypass_mode=False"),
    ],
)
def test_the_old_log_prob_pass_is_run_only_for_a_reason(overrides, reason):
    config, result = settled(*overrides)
    assert result.contradictions == []
    assert config.actor_rollout_ref.actor.use_kl_loss is (f"{ACTOR}.use_kl_loss=True" in overrides)
    assert config.algorithm.rollout_correction.bypass_mode is (reason is None)
    said = [n for n in result.notices if "the old-log-prob pass" in n]
    assert len(said) == (reason is not None)
    assert all(reason in n for n in said)


def test_every_trainer_mode_has_gpgs_version():
    for mode in ("sync", "colocate_async", "separate_async"):
        config, result = settled(f"trainer.v1.trainer_mode={mode}")
        assert (result.contradictions, config.trainer.v1.trainer_mode) == ([], f"gpg_{mode}")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, GPGSettings()),
        ({}, GPGSettings()),
        ({"f_norm": 1}, GPGSettings(f_norm="1")),
        ({"f_norm": 1.0}, GPGSettings(f_norm="1")),
        ({"f_norm": "std", "alpha": "token"}, GPGSettings(f_norm="std", alpha="token")),
        ({"alpha": "none"}, GPGSettings(alpha="none")),
        ({"beta_th": 1, "max_dropped_share": 0}, GPGSettings(beta_th=1.0, max_dropped_share=0.0)),
        ({"max_rollout_gap": 2, "max_failed_share": 1}, GPGSettings(max_rollout_gap=2.0, max_failed_share=1.0)),
        ({"max_rollout_gap": float("inf")}, GPGSettings(max_rollout_gap=float("inf"))),
        ({"max_rollout_gap": None, "max_session_seconds": None}, GPGSettings()),
        ({"max_session_seconds": 600, "drop_unscored": True}, GPGSettings(max_session_seconds=600, drop_unscored=True)),
        ({"share_prefixes": False}, GPGSettings(share_prefixes=False)),
    ],
)
def test_settings_are_read(node, expected):
    assert GPGSettings.from_node(node) == expected


NAN = float("nan")
NOT_SETTINGS = (
    *({"f_norm": True}, {"alpha": None}, {"beta_th": "0.5"}, {"beta_th": NAN}, {"max_dropped_share": 1.5}),
    *({"max_rollout_gap": 0}, {"max_session_seconds": True}, {"max_failed_share": -0.1}, {"share_prefixes": 1}),
    *({"drop_unscored": "error"}, {"max_rollout_gap": NAN}, [1]),
)


@pytest.mark.parametrize("node", NOT_SETTINGS, ids=str)
def test_settings_that_are_not(node):
    with pytest.raises(SettingError, match=r"algorithm\.gpg"):
        GPGSettings.from_node(node)


def test_typed_keys():
    assert typed_keys(["a.b=1", "+c.d=x=y", "++e=2", "~f"]) == {"a.b", "c.d", "e", "f"}


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        ([], None),
        (["trainer.total_epochs=3", f"{ACTOR}.optim.lr=1e-5", "critic.enable=False"], None),
        (["algorithm.gamma=0.9", f"{ACTOR}.clip_ratio_high=0.3"], f"{ACTOR}.clip_ratio_high, algorithm.gamma"),
        (["algorithm.norm_adv_by_std_in_grpo=False"], "algorithm.norm_adv_by_std_in_grpo"),
        (["critic.optim.lr=1e-5", f"{ACTOR}.policy_loss.dro_beta=1"], f"{ACTOR}.policy_loss.dro_beta, critic.optim.lr"),
        ([f"{ACTOR}.kl_loss_coef=0.1"], f"{ACTOR}.kl_loss_coef"),
        ([f"{ACTOR}.kl_loss_coef=0.1", f"{ACTOR}.use_kl_loss=True", "+algorithm.gpg.allow_kl=True"], None),
        ([f"{ACTOR}.shuffle=True", f"{ACTOR}.data_loader_seed=7"], f"{ACTOR}.data_loader_seed, {ACTOR}.shuffle"),
        ([f"{ACTOR}.shuffle=True", f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"], None),  # veRL's own updates
        (["+algorithm.gpg.max_batches=3"], "algorithm.gpg.max_batches"),
        (["+algorithm.gpg.max_batches=3", "+algorithm.gpg.beta_th=0.6"], None),
        (["reward_model.num_workers=3"], "reward_model.num_workers"),
    ],
)
def test_what_was_typed_and_is_not_read_is_listed(overrides, unread):
    _, result = settled(*overrides)
    assert result.contradictions == []
    lines = [line.partition(": ")[2] for line in result.notices if line.startswith("typed, but GPG does not read it")]
    assert lines == ([] if unread is None else [unread])


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("experts", [None, 1, 8])
def test_only_a_mixture_of_experts_keeps_rows_for_its_router(hub, experts, tmp_path, monkeypatch):
    """And `check` asks no hub for it: a model that is not here says nothing."""
    from transformers import AutoConfig, LlamaConfig

    asked = []
    original = AutoConfig.from_pretrained.__func__
    monkeypatch.setattr(
        AutoConfig,
        "from_pretrained",
        classmethod(lambda cls, *a, **k: asked.append(k.get("local_files_only")) or original(cls, *a, **k)),
    )
    LlamaConfig(**({} if experts is None else {"num_local_experts": experts})).save_pretrained(tmp_path)
    model = "some/model-that-is-nowhere" if hub else tmp_path
    _, result = settled("model_engine=megatron", f"actor_rollout_ref.model.path={model}")
    assert any("moe_aux_loss_coeff=None" in line for line in result.notices) == (not hub and experts == 8)
    assert asked == [True]
