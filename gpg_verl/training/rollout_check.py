"""Do trainer and rollout see the same? Asked once after every start, of the first update's own forward pass.

Nothing but the log-probs of the sampled tokens shows whether the two have the same weights and the same images: with
veRL's default `load_format=dummy`, vLLM 0.28 leaves its image normalisation random, generates as if nothing were, and
the run trains on answers to pictures that nobody asked about.
"""

from __future__ import annotations

from importlib import metadata

from omegaconf import DictConfig, OmegaConf

from gpg_verl.training.agreement import FARTHEST, Gap

# How far the rollout's log-probs may be from the trainer's, as `Gap.root_mean_square`. Two engines in fp32 differ by
# the order of their sums (at most 1e-6 in tiny models), in bf16 by its 8 bits: up to 0.07. Images without their
# normalisation make 0.5 and more in a model that has learnt to look at them, in tiny random ones, whose answers hardly
# depend on them, 0.003 to 0.06; other weights make more than a nat (docs/vision.md has all figures).
FP32_GAP = 1e-4
BF16_GAP = 0.15

ROLLOUT = "actor_rollout_ref.rollout"


def allowed_gap(config: DictConfig) -> float:
    """FP32_GAP where trainer and rollout both compute in fp32, else BF16_GAP."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    trainer = OmegaConf.select(actor, "fsdp_config.mixed_precision.param_dtype")
    exact = str(rollout.dtype) in ("float32", "float") and str(trainer) in ("fp32", "float32")
    return FP32_GAP if exact and actor.strategy in ("fsdp", "fsdp2") else BF16_GAP


def not_comparable(config: DictConfig) -> str | None:
    """Why the rollout's log-probs say nothing about the trainer's; None where they do."""
    rollout = config.actor_rollout_ref.rollout
    if not rollout.calculate_log_probs:
        return f"{ROLLOUT}.calculate_log_probs=False: the rollout gives no log-probs"
    if rollout.logprobs_mode == "raw_logprobs":
        if rollout.temperature != 1:
            return f"{ROLLOUT}.logprobs_mode=raw_logprobs with temperature={rollout.temperature}"
        return None
    for name, cuts in (("top_p", rollout.top_p < 1), ("top_k", rollout.top_k > 0)):
        if cuts:
            return f"{ROLLOUT}.{name}={rollout[name]}: the rollout's log-probs are those of the tokens that this leaves"
    return None


class RolloutCheck:
    """Judges the gaps of the first update, of rows of text and of rows with images apart.

    kinds: what is still to be compared.

    Args:
        config: veRL's whole config.
        max_gap: how far log-probs may be apart, in nats; None: by precision.
        corrected: whether rollout correction weighs or rejects tokens.
        not_seen: why no update's forward pass is looked at; None where one is.
    """

    def __init__(self, config: DictConfig, max_gap: float | None, corrected: bool, not_seen: str | None = None):
        self.rollout = config.actor_rollout_ref.rollout
        self.max_gap = allowed_gap(config) if max_gap is None else max_gap
        self.kinds = {"text", "images"}
        self.difference_expected = None  # of text
        if self.rollout.get("quantization"):
            self.difference_expected = f"{ROLLOUT}.quantization={self.rollout.quantization}"
        elif corrected:
            self.difference_expected = "algorithm.rollout_correction corrects for it"
        if reason := not_seen or not_comparable(config):
            self.kinds = set()
            print(f"gpg_verl: trainer and rollout are not compared: {reason}", flush=True)

    def __call__(self, gaps: dict[str, Gap]) -> None:
        """Called after an update, before anything is saved or sent to the rollout.

        Raises:
            RuntimeError: they disagree; says by how much, what is allowed and how to fix it.
        """
        for kind in sorted(self.kinds & gaps.keys()):
            self.kinds.remove(kind)
            gap = gaps[kind]
            seen = (
                f"on {kind}: their log-probs are {gap.root_mean_square:.2g} apart (root mean square over the nearest "
                f"{1 - FARTHEST:.0%} of {gap.tokens} response tokens of {gap.rows} rows; largest {gap.largest:.2g}), "
                f"allowed is {self.max_gap:g}"
            )
            if gap.root_mean_square <= self.max_gap:  # nan is not
                print(f"gpg_verl: trainer and rollout agree {seen}", flush=True)
            elif kind == "text" and self.difference_expected:
                print(f"gpg_verl: WARNING: trainer and rollout disagree {seen}: {self.difference_expected}", flush=True)
            else:
                raise RuntimeError(
                    f"trainer and rollout disagree {seen}. One update was made; nothing of it was saved or sent to the "
                    f"rollout. {self._cause(kind)}. Versions: {versions()}. If the difference is meant (a quantised "
                    "rollout), set +algorithm.gpg.max_rollout_gap above it"
                )

    def _cause(self, kind: str) -> str:
        used = f"{ROLLOUT}.load_format={self.rollout.load_format}"
        if kind == "text":
            return (
                "The rollout samples from other weights than are trained: look at the versions, at dtypes, and at what "
                f"changes weights on their way (LoRA, quantisation, {used})"
            )
        cause = (
            f"{used} is not the cause; look at the versions, at the model's preprocessor_config.json and at what "
            "differs between the two processors' settings (min_pixels, max_pixels, mm_processor_kwargs)"
        )
        if self.rollout.load_format == "dummy":
            cause = (
                f"{used} leaves the image normalisation of some vLLM versions (0.28) random: set "
                f"{ROLLOUT}.load_format=auto"
            )
        return f"The rollout answers to other images than the trainer sees. {cause}"


def versions() -> str:
    """Of what decides what the two compute."""

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "is not installed"

    return ", ".join(f"{name} {version(name)}" for name in ("vllm", "transformers", "qwen_vl_utils"))
