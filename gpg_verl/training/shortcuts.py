"""When rows and passes may be left out, read from veRL's config: what else than GPG's loss would miss them.

Imports neither torch nor veRL, as the look before a run asks the same questions.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from gpg_verl.algorithm.updates import SAME_DENOMINATOR, TOKEN_MEAN
from gpg_verl.settings import GPGSettings, verls_mode

# veRL's engines that take their denominators from the rows of a call as FSDP's does.
STRATEGIES = ("fsdp", "fsdp2", "megatron")


def other_loss_term(config: DictConfig, ask_hub: bool = True) -> str | None:
    """What else than GPG's loss gives a row a gradient, so that none may be left out; None where nothing does.

    ask_hub: whether a model that is not on this machine is looked up; where not, it is taken to have no experts.
    """

    def get(key: str):
        return OmegaConf.select(config, key)

    actor = "actor_rollout_ref.actor"
    if get(f"{actor}.entropy_coeff"):
        return f"{actor}.entropy_coeff={get(f'{actor}.entropy_coeff')}: the entropy bonus gives every row a gradient"
    for key in (
        f"{actor}.use_kl_loss",
        "algorithm.use_kl_in_reward",
        "distillation.enabled",
        "actor_rollout_ref.model.mtp.enable",
    ):
        if get(key):
            return f"{key}=True gives every row a gradient"
    if get(f"{actor}.strategy") == "megatron":
        transformer = f"{actor}.megatron.override_transformer_config"
        # veRL takes the first from the model's own config where it is not set; the second is off where it is not set.
        for coefficient, off in (("moe_aux_loss_coeff", (0,)), ("moe_z_loss_coeff", (0, None))):
            value = get(f"{transformer}.{coefficient}")
            if value not in off and _has_experts(get("actor_rollout_ref.model.path"), ask_hub):
                return (
                    f"{transformer}.{coefficient}={value}: the router's loss gives every row a gradient "
                    "(0 turns it off)"
                )
    return None


def _has_experts(model: str | None, ask_hub: bool) -> bool:
    """Whether the model is a mixture of experts, by the names that its config gives to their number; if the config
    cannot be read, True where all was done to read it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, local_files_only=not ask_hub).to_dict()
    except Exception:
        return ask_hub
    return any((config.get(key) or 0) > 1 for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def why_verl_updates(config: DictConfig) -> str | None:
    """Why veRL's own update is called on the whole batch, and not the updates planned here; None where these are."""

    def get(key: str):
        return OmegaConf.select(config, key)

    for key in ("distillation.enabled", "actor_rollout_ref.model.mtp.enable"):
        if get(key):
            return f"{key}=True"
    actor = "actor_rollout_ref.actor"
    if get(f"{actor}.strategy") not in STRATEGIES:
        return f"{actor}.strategy={get(f'{actor}.strategy')}: known for {', '.join(STRATEGIES)}"
    mode = get(f"{actor}.loss_agg_mode")
    if mode not in TOKEN_MEAN + SAME_DENOMINATOR:
        return f"{actor}.loss_agg_mode={mode}: unknown denominator"
    if mode == "seq-mean-token-sum-norm" and get(f"{actor}.loss_scale_factor") is None:
        return f"{actor}.loss_agg_mode={mode} without loss_scale_factor divides by the padded width of the batch"
    return None


def why_rows_stay(config: DictConfig, ask_hub: bool = True) -> str | None:
    """Why rows without gradient go through the actor all the same; None where they are left out."""
    return other_loss_term(config, ask_hub) or why_verl_updates(config)


def why_verls_passes(config: DictConfig) -> str | None:
    """Why the actor's forward passes are veRL's own; None where they are GPG's (training/passes.py)."""

    def get(key: str):
        return OmegaConf.select(config, key)

    reason = why_verl_updates(config)
    if reason is not None:
        return reason
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    if get(f"{actor}.strategy") not in ("fsdp", "fsdp2"):
        return f"{actor}.strategy={get(f'{actor}.strategy')}: known for fsdp and fsdp2"
    for key in (f"{actor}.ulysses_sequence_parallel_size", f"{actor}.fsdp_config.ulysses_sequence_parallel_size"):
        if (get(key) or 1) > 1:
            return f"{key}={get(key)} cuts sequences into parts"
    if get(f"{model}.use_fused_kernels"):
        return f"{model}.use_fused_kernels=True has a way of its own with the vocabulary"
    return None


def why_not_shared(config: DictConfig) -> str | None:
    """Why the prefixes that rows share are computed once a row; None where once for all of them."""
    reason = why_verls_passes(config)
    if reason is not None:
        return reason
    if not GPGSettings.from_node(OmegaConf.select(config, "algorithm.gpg")).share_prefixes:
        return "algorithm.gpg.share_prefixes=False"
    from transformers import AutoConfig

    model = config.actor_rollout_ref.model
    try:
        read = AutoConfig.from_pretrained(model.path, trust_remote_code=bool(model.get("trust_remote_code")))
    except Exception:
        return None  # not where this process can read it: the actor workers ask the same of the model that they have
    return why_not_with_model(read)


def why_not_with_model(whole) -> str | None:
    """Why rows of a model, by its config of transformers, are computed one by one."""
    if hasattr(whole, "vision_config") and whole.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        return f"{whole.model_type}: of the models with images, known for qwen2_vl and qwen2_5_vl"
    text = whole.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{whole.model_type} has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    state = [key for key in text.to_dict() if key.startswith(("mamba_", "ssm_", "state_size", "linear_conv"))]
    if state or not hasattr(text, "num_attention_heads"):
        return f"{whole.model_type} has state-space layers ({', '.join(state) or 'no attention heads'})"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"{whole.model_type} has a sliding window of {text.sliding_window} tokens"
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind in ("dynamic", "longrope"):
        return f"{whole.model_type} scales its positions ({kind}) by the longest row of a pass"
    return None


def passes_in_groups(config: DictConfig) -> int:
    """What the number of a rank's forward passes must be a multiple of: virtual pipeline stages (Megatron) take turns
    at groups of passes, as many as there are stages unless set otherwise.
    """
    actor = "actor_rollout_ref.actor"
    megatron = OmegaConf.select(config, f"{actor}.megatron")
    if OmegaConf.select(config, f"{actor}.strategy") != "megatron" or megatron is None:
        return 1
    if (megatron.get("virtual_pipeline_model_parallel_size") or 1) <= 1:
        return 1
    group = OmegaConf.select(megatron, "override_transformer_config.microbatch_group_size_per_vp_stage")
    return group or megatron.get("pipeline_model_parallel_size") or 1


def updates_per_batch(config: DictConfig) -> int:
    """K: into how many mini-batches a sampled batch is cut (paper: 1), `ppo_epochs` apart."""
    actor, v1 = config.actor_rollout_ref.actor, config.trainer.v1
    local_batches = OmegaConf.select(v1, f"{verls_mode(v1.trainer_mode)}.parameter_sync_step") or 1
    return max(1, config.data.train_batch_size // local_batches // actor.ppo_mini_batch_size)
