"""A tiny random Qwen2-VL or Qwen2.5-VL with its tokenizer and image processor, for runs that take seconds on a CPU.

    python examples/vision/tiny.py --kind qwen2_vl --out runs/tiny-vl

Architecture, processor and special tokens are the real ones, so everything that reads a checkpoint reads this one;
only the sizes are small: 0.2M parameters, a vocabulary of a few words.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

KINDS = ("qwen2_vl", "qwen2_5_vl")
IMAGE_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS, "<unk>"]
WORDS = (" red", " green", " blue", " circle", " square", " left", " right", "\n")

# As Qwen's template, for content that is a string or a list of parts; without its system prompt.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)

PATCH, MERGE = 14, 2
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    # The sections of the rotary embedding (time, height, width) add up to half of a head.
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
}
VISION = {
    "depth": 2,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
}
VISION_OF = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": TEXT["hidden_size"]},
    "qwen2_5_vl": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": TEXT["hidden_size"],
        # One layer of each of its kinds: attention in windows of 2x2 merged patches, and over the whole image.
        "window_size": PATCH * MERGE * 2,
        "fullatt_block_indexes": [1],
    },
}


def make_model(folder: Path, kind: str, words: Sequence[str] = WORDS) -> Path:
    """Writes model, tokenizer and image processor into `folder`, which appears whole or not at all.

    Args:
        folder: must not exist.
        kind: one of KINDS.
        words: the vocabulary behind the special tokens. Each is one token, written into a response as it stands, with
            its own spaces; so a recipe's answers can be single tokens. In a prompt, text between words is one <unk>
            for each stretch without a space.

    Raises:
        ValueError: an unknown kind, or a word that is empty or there twice.
        FileExistsError: `folder` exists.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {' and '.join(KINDS)}")
    vocabulary = [*SPECIAL, *words]
    if "" in words or len(set(vocabulary)) < len(vocabulary):
        raise ValueError(f"words={list(words)}: each must be there once, not be empty and none of {SPECIAL}")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary) / "model"
        _write(work, kind, vocabulary, words)
        os.replace(work, folder)
    return folder


def _write(folder: Path, kind: str, vocabulary: list[str], words: Sequence[str]) -> None:
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer(vocabulary, words)
    tokenizer.save_pretrained(folder)
    # The name is that of the hub's checkpoints; the loader takes the PIL version where torchvision is missing.
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, min_pixels=784, max_pixels=401408)
    processor.save_pretrained(folder)
    configuration, model_class = {
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    }[kind]
    image_tokens = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            IMAGE_TOKENS,
            strict=True,
        )
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = model_class(
        configuration(
            text_config={**TEXT, **ends, "vocab_size": len(tokenizer)},
            vision_config={**VISION, **VISION_OF[kind]},
            tie_word_embeddings=False,
            **image_tokens,
            **ends,
        )
    )
    _never_write(model, [image_tokens["image_token_id"], image_tokens["video_token_id"]])
    model.generation_config.do_sample = True
    model.save_pretrained(folder)


def _never_write(model, tokens: list[int]) -> None:
    """Gives the tokens a probability of 0, as training gives them in the real models.

    veRL forbids the rollout to write the places of images. Where the model would, the rollout's probabilities are not
    the trainer's. So one feature is 100 everywhere, which updates with a learning rate of 1e-3 hardly change, and
    speaks against these tokens only; the others are about 1, and still are behind the norms.
    """
    import torch

    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        last = model.model.visual.merger.mlp[-1]
        embeddings *= 50
        last.weight *= 50
        embeddings[:, 0] = 100
        last.weight[0] = 0
        last.bias[0] = 100
        for name, parameter in model.model.language_model.named_parameters():
            if name.endswith("norm.weight"):
                parameter[1:] = 100 / TEXT["hidden_size"] ** 0.5
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[tokens] = 0
        model.lm_head.weight[tokens, 0] = -100


def _tokenizer(vocabulary: list[str], words: Sequence[str]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{word}|((?!{word})\S)+"), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", *IMAGE_TOKENS],
        chat_template=CHAT,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    arguments = parser.parse_args()
    print(make_model(arguments.out, arguments.kind))


if __name__ == "__main__":
    main()
