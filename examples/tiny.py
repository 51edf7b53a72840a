"""Tiny models of random parameters for runs that take seconds on a CPU: smoke runs, benchmarks and tests.

    python examples/tiny.py letters runs/tiny           # a model with data and a reward; see `make`
    python examples/tiny.py qwen2_vl runs/tiny-vl       # or qwen2_5_vl: a model alone

Architectures, processors and special tokens are the real ones, so everything that reads a checkpoint reads these; only
the sizes are small: 0.1M to 0.2M parameters, a vocabulary of letters or of a few words.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end: it appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        yield work
        os.replace(work, folder)


def make_tokenizer(vocabulary: Sequence[str], split, chat: str, special: Sequence[str] = (), **named: str):
    """One token for each of the vocabulary; `named`: pad_token, eos_token and, where text can be unknown, unk_token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    unknown = named.get("unk_token", named["pad_token"])
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=unknown))
    if split:
        backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(special), chat_template=chat, **named
    )


def make_llama(folder: Path, tokenizer, max_position_embeddings: int, sizes: dict[str, int] = SIZES) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


# ---- text: letters, and words of one's choice


MARKS = ["<user>", "<assistant>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"
LETTERS_CHAT = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}" + ASK
WORDS_CHAT = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}" + ASK  # words end at spaces


def make_letters(folder: Path) -> Path:
    from tokenizers import pre_tokenizers

    vocabulary = ["<pad>", "<eos>", *MARKS, *LETTERS]
    split = pre_tokenizers.Split("", "isolated")
    tokenizer = make_tokenizer(vocabulary, split, LETTERS_CHAT, MARKS, pad_token="<pad>", eos_token="<eos>")
    return make_llama(folder, tokenizer, 256)


def make_words(folder: Path, words: Sequence[str]) -> Path:
    from tokenizers import pre_tokenizers

    named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    vocabulary = [*named.values(), *MARKS, *words]
    tokenizer = make_tokenizer(vocabulary, pre_tokenizers.WhitespaceSplit(), WORDS_CHAT, MARKS, **named)
    return make_llama(folder, tokenizer, 512)


# ---- a run of letters: data, reward and settings


VOWELS = "aeiouyhlmnrst"  # half of the alphabet
REWARD = f"""
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = float(solution_str[:1] in {VOWELS!r})
    return {{"score": right, "acc": right}}
"""


def make_data(file: Path, rows: int) -> Path:
    import pandas as pd

    pd.DataFrame(
        {
            "data_source": "tiny/vowels",
            "prompt": [[{"role": "user", "content": LETTERS[i % 26] + LETTERS[i // 26 % 26]}] for i in range(rows)],
            "ability": "letters",
            "reward_model": [{"style": "rule", "ground_truth": "a vowel"}] * rows,
            "extra_info": [{"index": i} for i in range(rows)],
        }
    ).to_parquet(file)
    return file


def make(folder: Path, rows: int = 64) -> Path:
    """Writes model/, train.parquet, test.parquet and reward.py into `folder`.

    The reward is 1 where the response's first token is a vowel, so about half of the responses are right, most groups
    are mixed and a few updates show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_letters(folder / "model")
    make_data(folder / "train.parquet", rows)
    make_data(folder / "test.parquet", 16)
    (folder / "reward.py").write_text(REWARD)
    return folder


def overrides(folder: Path, prompts: int = 4, n: int = 8, response: int = 16) -> list[str]:
    """The Hydra overrides of a tiny GPG run on a CPU, without steps and checkpoints, logged to the console."""
    return [
        "algorithm.adv_estimator=gpg",
        "+preset=cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/test.parquet",
        f"data.train_batch_size={prompts}",
        "data.max_prompt_length=8",
        f"data.max_response_length={response}",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={prompts * n}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={prompts * n}",
        f"actor_rollout_ref.rollout.n={n}",
        "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=16",
        "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=67108864",
        f"reward.custom_reward_function.path={folder}/reward.py",
        "trainer.logger=[console]",
    ]


# ---- images and words: Qwen2-VL, Qwen2.5-VL


KINDS = ("qwen2_vl", "qwen2_5_vl")
IMAGE_TOKENS = {  # of the configurations
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS.values(), "<unk>"]
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
    **SIZES,
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


def make_vision(folder: Path, kind: str, words: Sequence[str] = WORDS) -> Path:
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
    if "" in words or len({*SPECIAL, *words}) < len(SPECIAL) + len(words):
        raise ValueError(f"words={list(words)}: each must be there once, not be empty and none of {SPECIAL}")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or choose another folder")
    with whole(folder) as work:
        _write(work, kind, words)
    return folder


def _write(folder: Path, kind: str, words: Sequence[str]) -> None:
    import torch
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = vision_tokenizer(words)
    tokenizer.save_pretrained(folder)
    # The name is that of the hub's checkpoints; the loader takes the PIL version where torchvision is missing.
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, min_pixels=784, max_pixels=401408)
    processor.save_pretrained(folder)
    image_tokens = {name: tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE_TOKENS.items()}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        kind,
        text_config={**TEXT, **ends, "vocab_size": len(tokenizer)},
        vision_config={**VISION, **VISION_OF[kind]},
        tie_word_embeddings=False,
        **image_tokens,
        **ends,
    )
    torch.manual_seed(0)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
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


def vision_tokenizer(words: Sequence[str]):
    from tokenizers import Regex, pre_tokenizers

    word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return make_tokenizer(
        [*SPECIAL, *words],
        pre_tokenizers.Split(Regex(rf"{word}|((?!{word})\S)+"), "removed", invert=True),
        CHAT,
        ["<|im_start|>", *IMAGE_TOKENS.values()],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
    )


# ---- masks


def make_sam(folder: Path) -> None:
    """Its real architecture and processor, with masks that mean nothing."""
    import torch
    from transformers import SamConfig, SamModel
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    side, patch, hidden = 64, 8, 16
    vision = {"hidden_size": 32, "output_channels": hidden, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": side, "patch_size": patch, "mlp_dim": 64, "num_pos_feats": hidden // 2}
    vision |= {"global_attn_indexes": [1], "window_size": 4}
    prompts = {"hidden_size": hidden, "image_size": side, "patch_size": patch}
    decoder = {"hidden_size": hidden, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": hidden}
    torch.manual_seed(0)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("letters", *KINDS))
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    print(make(arguments.out) if arguments.kind == "letters" else make_vision(arguments.out, arguments.kind))


if __name__ == "__main__":
    main()
