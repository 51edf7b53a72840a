"""When rows and passes may be left out, read from veRL's config: what else than GPG's loss would miss them.

Imports neither torch nor veRL, as the look before a run asks the same questions.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from gpg_verl.algorithm.updates import SAME_DENOMINATOR, TOKEN_MEAN
from gpg_verl.settings import verls_mode

# veRL's engines that take their denominators from the rows of a call as FSDP's does.
STRATEGIES = ("fsdp", "fsdp2", "megatron")


def other_loss_term(config: DictConfig, ask_hub: bool = True) -> str | None:
    """What else than GPG's loss gives a row a gradient, so that none may be left out; None where nothing does.

    ask_hub: whether a model that is not on this machine is looked up; where not, it is taken to have no experts.
    """
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"

    def get(key: str):
        return OmegaConf.select(config, key)

    if get(f"{actor}.entropy_coeff"):
        return f"{actor}.entropy_coeff={get(f'{actor}.entropy_coeff')}: the entropy bonus gives every row a gradient"
    for key in (f"{actor}.use_kl_loss", "algorithm.use_kl_in_reward", "distillation.enabled", f"{model}.mtp.enable"):
        if get(key):
            return f"{key}=True gives every row a gradient"
    transformer = f"{actor}.megatron.override_transformer_config"
    # veRL takes the first from the model's own config where it is not set; the second is off where it is not set.
    for coefficient, off in (("moe_aux_loss_coeff", (0,)), ("moe_z_loss_coeff", (0, None))):
        value, strategy = get(f"{transformer}.{coefficient}"), get(f"{actor}.strategy")
        if strategy == "megatron" and value not in off and _has_experts(get(f"{model}.path"), ask_hub):
            return f"{transformer}.{coefficient}={value}: the router's loss gives every row a gradient (0 turns it off)"
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


def unsupported(config: DictConfig, ask_hub: bool = True, model=None) -> dict[str, str | None]:
    """Why this run goes without each of GPG's shortcuts; None for those that it takes.

    Args:
        config: veRL's whole config.
        ask_hub: as for `other_loss_term`.
        model: the model's config of transformers (`model_config`); None where it is not known in this process.

    Returns a reason for each of
        updates: the updates planned here; otherwise veRL's own is called on the whole batch,
        dropped_rows: leaving rows without a gradient out of them,
        rows: passes with the vocabulary only where a token is scored (training/passes.py),
        trees: passes that also compute what rows share once.
    """
    updates = _unplanned(config)
    rows = updates or _unsupported_engine(config)
    trees = rows or (unsupported_model(model) if model is not None else None)
    if rows is None and not OmegaConf.select(config, "algorithm.gpg.share_prefixes", default=True):
        trees = "algorithm.gpg.share_prefixes=False"
    dropped_rows = other_loss_term(config, ask_hub) or updates
    return {"updates": updates, "dropped_rows": dropped_rows, "rows": rows, "trees": trees}


def _unplanned(config: DictConfig) -> str | None:
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"

    def get(key: str):
        return OmegaConf.select(config, key)

    for key in ("distillation.enabled", f"{model}.mtp.enable"):
        if get(key):
            return f"{key}=True"
    if get(f"{actor}.strategy") not in STRATEGIES:
        return f"{actor}.strategy={get(f'{actor}.strategy')}: known for {', '.join(STRATEGIES)}"
    mode = get(f"{actor}.loss_agg_mode")
    if mode not in TOKEN_MEAN + SAME_DENOMINATOR:
        return f"{actor}.loss_agg_mode={mode}: unknown denominator"
    if mode == "seq-mean-token-sum-norm" and get(f"{actor}.loss_scale_factor") is None:
        return f"{actor}.loss_agg_mode={mode} without loss_scale_factor divides by the padded width of the batch"
    return None


def _unsupported_engine(config: DictConfig) -> str | None:
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"

    def get(key: str):
        return OmegaConf.select(config, key)

    if get(f"{actor}.strategy") not in ("fsdp", "fsdp2"):
        return f"{actor}.strategy={get(f'{actor}.strategy')}: known for fsdp and fsdp2"
    for key in (f"{actor}.ulysses_sequence_parallel_size", f"{actor}.fsdp_config.ulysses_sequence_parallel_size"):
        if (get(key) or 1) > 1:
            return f"{key}={get(key)} cuts sequences into parts"
    if get(f"{model}.use_fused_kernels"):
        return f"{model}.use_fused_kernels=True has a way of its own with the vocabulary"
    return None


def model_config(config: DictConfig):
    """The model's config of transformers; None where this process cannot read it: then the actor workers ask
    `unsupported_model` of the model that they have.
    """
    from transformers import AutoConfig

    model = config.actor_rollout_ref.model
    try:
        return AutoConfig.from_pretrained(model.path, trust_remote_code=bool(model.get("trust_remote_code")))
    except Exception:
        return None


def unsupported_model(model) -> str | None:
    """Why the rows of a model, by its config of transformers, are computed one by one; None where nothing in it says
    so. What else a model may do is found on rows of the batch (training/self_check.py).
    """
    kind = model.model_type
    if hasattr(model, "vision_config") and kind not in ("qwen2_vl", "qwen2_5_vl"):
        return f"{kind}: of the models with images, known for qwen2_vl and qwen2_5_vl"
    text = model.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if layers:
        return f"{kind} has layers of {', '.join(sorted(layers))}"
    state = [key for key in text.to_dict() if key.startswith(("mamba_", "ssm_", "state_size", "linear_conv"))]
    if state or not hasattr(text, "num_attention_heads"):
        return f"{kind} has state-space layers ({', '.join(state) or 'no attention heads'})"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"{kind} has a sliding window of {text.sliding_window} tokens"
    scaled = _rope_types(text) & {"dynamic", "longrope"}
    if scaled:
        return f"{kind} scales its positions ({', '.join(sorted(scaled))}) by the longest row of a pass"
    if getattr(text, "alibi", False) or kind in ("bloom", "mpt"):
        return f"{kind} adds a bias to attention by a token's place in the sequence (ALiBi)"
    if kind.startswith("llama4") and getattr(text, "attn_temperature_tuning", False):
        return f"{kind} scales queries by their place in the sequence (attn_temperature_tuning)"
    return None


def _rope_types(text) -> set[str]:
    """Of all layers: the parameters of RoPE stand in the config alone or by the type of layer."""
    found = [getattr(text, name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    found += [node for nodes in found for node in nodes.values() if isinstance(node, dict)]
    return {node.get("rope_type", node.get("type")) for node in found} - {None}


def passes_in_groups(config: DictConfig) -> int:
    """What the number of a rank's forward passes must be a multiple of: virtual pipeline stages (Megatron) take turns
    at groups of passes, as many as there are stages unless set otherwise.
    """
    actor = "actor_rollout_ref.actor"
    megatron = OmegaConf.select(config, f"{actor}.megatron") or {}
    stages = megatron.get("virtual_pipeline_model_parallel_size") or 1
    if OmegaConf.select(config, f"{actor}.strategy") != "megatron" or stages <= 1:
        return 1
    transformer = megatron.get("override_transformer_config") or {}
    group = transformer.get("microbatch_group_size_per_vp_stage")
    return group or megatron.get("pipeline_model_parallel_size") or 1


def updates_per_batch(config: DictConfig) -> int:
    """K: into how many mini-batches a sampled batch is cut (paper: 1), `ppo_epochs` apart."""
    actor, v1 = config.actor_rollout_ref.actor, config.trainer.v1
    local_batches = OmegaConf.select(v1, f"{verls_mode(v1.trainer_mode)}.parameter_sync_step") or 1
    return max(1, config.data.train_batch_size // local_batches // actor.ppo_mini_batch_size)
