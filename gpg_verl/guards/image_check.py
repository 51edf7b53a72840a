"""Do trainer and rollout see the same images? Asked once, before the first update that has images in its batch.

Both have the images from their own processor, and nothing but the log-probs of the sampled tokens shows whether they
mean the same: with veRL's default `load_format=dummy`, vLLM 0.28 leaves its image normalisation random, generates as if
nothing were, and the run trains on answers to pictures that nobody asked about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from importlib import metadata

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.utils.tokenizer import get_processor_token_id
from verl.workers.utils.padding import response_from_nested

ROWS = 8  # compared, or more where their number must be a multiple

# How far the rollout's log-probs may be from the trainer's: root mean square of all but the tokens that are farthest
# apart, in nats. Two engines in fp32 differ by the order of their sums (at most 1e-6 in tiny models), in bf16 by its 8
# bits: up to 0.07. Images without their normalisation make 0.5 and more in a model that has learnt to look at them, in
# tiny random ones, whose answers hardly depend on them, 0.003 to 0.06 (docs/vision.md has all figures).
FP32_GAP = 1e-4
BF16_GAP = 0.15

# Of the tokens, left out: single ones may be nats apart in a healthy run in bf16, where the two round an unlikely token
# or an expert's choice differently. Other images are seen by all tokens.
FARTHEST = 0.02

PARTITION = "image_check"  # of TransferQueue

# What the trainer's forward pass over a row needs, and what is compared.
FIELDS = [
    *("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask"),
    *("multi_modal_inputs", "routed_experts", "rollout_log_probs"),
]


def allowed_gap(config: DictConfig) -> float:
    """FP32_GAP where trainer and rollout both compute in fp32, else BF16_GAP."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    engine = {"fsdp": "fsdp_config", "fsdp2": "fsdp_config"}.get(actor.strategy)
    trainer = OmegaConf.select(actor, f"{engine}.mixed_precision.param_dtype") if engine else None
    exact = str(rollout.dtype) in ("float32", "float") and str(trainer) in ("fp32", "float32")
    return FP32_GAP if exact else BF16_GAP


def why_not_comparable(config: DictConfig) -> str | None:
    """Why the rollout's log-probs say nothing about the trainer's; None where they do."""
    rollout = config.actor_rollout_ref.rollout
    key = "actor_rollout_ref.rollout"
    if not rollout.calculate_log_probs:
        return f"{key}.calculate_log_probs=False: the rollout gives no log-probs"
    if rollout.logprobs_mode == "raw_logprobs":
        if rollout.temperature != 1:
            return f"{key}.logprobs_mode=raw_logprobs with temperature={rollout.temperature}"
        return None
    for name, cuts in (("top_p", rollout.top_p < 1), ("top_k", rollout.top_k > 0)):
        if cuts:
            return f"{key}.{name}={rollout[name]}: the rollout's log-probs are those of the tokens that this leaves"
    return None


def gap_of(difference: torch.Tensor) -> float:
    """Root mean square of the differences (tokens,), without the FARTHEST of them; nan where one is nan."""
    kept = difference.abs().sort().values[: max(1, int(len(difference) * (1 - FARTHEST)))]
    return math.nan if difference.isnan().any() else kept.square().mean().sqrt().item()


class ImageCheck:
    """Compares the trainer's log-probs with the rollout's on a few rows with images, at the first batch that has some.

    Args:
        config: veRL's whole config.
        max_gap: how far they may be apart, in nats; None: by precision.
        key: the setting that gives it, for messages.
    """

    def __init__(self, config: DictConfig, max_gap: float | None, key: str):
        self.config, self.key = config, key
        self.max_gap = allowed_gap(config) if max_gap is None else max_gap
        self.why_not = why_not_comparable(config)
        self.done = False

    def __call__(
        self, batch: KVBatchMeta, prompts: Sequence[str], processor, workers, multiple: int, version: int
    ) -> None:
        """Called before a batch is trained on, until rows with images were compared.

        Args:
            batch: as sampled, padding included.
            prompts: (rows,) the uid of each row's prompt.
            processor: veRL's, None for a model of text.
            workers: the actor's worker group.
            multiple: of how many the number of rows that it is given must be a multiple.
            version: which of the rollout's weights the trainer has now, as in the rows' tags.

        Raises:
            RuntimeError: they disagree; says by how much, what is allowed and how to fix it.
        """
        if self.done or processor is None:
            return
        if not (keys := self._rows(batch, prompts, processor, version)):
            return
        self.done = True
        if self.why_not is not None:
            print(f"gpg_verl: trainer and rollout are not compared on images: {self.why_not}", flush=True)
            return
        keys = keys[: max(ROWS, multiple)]
        trainer, rollout = self._log_probs(batch, keys, workers, multiple)
        difference = trainer - rollout
        gap, largest = gap_of(difference), difference.abs().max().item()
        seen = (
            f"{gap:.2g} apart (root mean square over the nearest {1 - FARTHEST:.0%} of {len(difference)} response "
            f"tokens of {len(keys)} rows with images; largest {largest:.2g}), allowed is {self.max_gap:g}"
        )
        if not gap <= self.max_gap:  # nan is not
            raise RuntimeError(self._message(seen))
        print(f"gpg_verl: trainer and rollout agree on images: their log-probs are {seen}", flush=True)

    def _rows(self, batch: KVBatchMeta, prompts: Sequence[str], processor, version: int) -> list[str]:
        """Keys of rows that this version of the weights sampled and that show an image, different prompts first."""
        prompt_of = {
            key: prompt
            for key, prompt, tag in zip(batch.keys, prompts, batch.tags, strict=True)
            if not tag.get("is_padding") and tag["min_global_steps"] == tag["max_global_steps"] == version
        }
        rows = list(prompt_of)
        if not rows:
            return []
        shown = [get_processor_token_id(processor, name) for name in ("image", "video")]
        shown = torch.tensor([token for token in shown if token is not None])
        tokens = tq.kv_batch_get(keys=rows, partition_id=batch.partition_id, select_fields=["prompts"])["prompts"]
        rows = [key for key, ids in zip(rows, tokens.unbind(), strict=True) if torch.isin(ids, shown).any()]
        of_prompt: Counter[str] = Counter()
        turns = []
        for key in rows:
            turns.append(of_prompt[prompt_of[key]])
            of_prompt[prompt_of[key]] += 1
        return [key for _, key in sorted(zip(turns, rows, strict=True))]

    def _log_probs(self, batch: KVBatchMeta, keys: list[str], workers, multiple) -> tuple[torch.Tensor, torch.Tensor]:
        """The trainer's and the rollout's, (tokens that the policy wrote,) each, by veRL's own pass."""
        # Every rank takes as many rows; what others of the batch add is not looked at.
        others = [key for key in batch.keys if key not in set(keys)]
        sent = keys + others[: -len(keys) % multiple]
        fields = tq.kv_batch_get(keys=sent, partition_id=batch.partition_id, select_fields=FIELDS)
        # In a place of their own: veRL writes the result to the rows it was given, and rows of one batch that differ in
        # their fields cannot be read together any more.
        tq.kv_batch_put(keys=sent, partition_id=PARTITION, fields=fields, tags=[{} for _ in sent])
        part = KVBatchMeta(keys=sent, tags=[{} for _ in sent], partition_id=PARTITION)
        part.extra_info.update(
            calculate_entropy=False,
            compute_loss=False,
            temperature=self.config.actor_rollout_ref.rollout.temperature,
        )
        if not self.config.actor_rollout_ref.actor.use_dynamic_bsz:
            part.extra_info["micro_batch_size_per_gpu"] = 1
        workers.compute_log_prob(part)
        names = ["log_probs", "response_mask", "rollout_log_probs"]
        data = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=names)
        tq.kv_clear(keys=sent, partition_id=PARTITION)
        written = data["response_mask"].values().bool()
        trainer = response_from_nested(data["log_probs"], data["response_mask"]).values()
        return trainer[written].float(), data["rollout_log_probs"].values()[written].float()

    def _message(self, seen: str) -> str:
        load_format = self.config.actor_rollout_ref.rollout.load_format
        key = "actor_rollout_ref.rollout.load_format"
        cause = (
            f"{key}=dummy leaves the image normalisation of some vLLM versions (0.28) random: set {key}=auto"
            if load_format == "dummy"
            else f"{key}={load_format} is not the cause; look at the versions, at the model's preprocessor_config.json "
            "and at what differs between the two processors' settings (min_pixels, max_pixels, mm_processor_kwargs)"
        )
        versions = ", ".join(f"{name} {_version(name)}" for name in ("vllm", "transformers", "qwen_vl_utils"))
        return (
            f"trainer and rollout disagree on images: their log-probs are {seen}. The run stops before an update on "
            f"them: the rollout answers to other images than the trainer sees. {cause}. Versions: {versions}. If the "
            f"difference is meant (a quantised rollout), set +{self.key} above it"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"
