"""A tiny model, data and reward for real veRL runs that take seconds: `python tests/tiny.py DIR` makes them.

The model is a Llama of 0.2M random parameters over a character vocabulary; the reward is 1 where the response's first
token is a vowel, so about half of the responses are right, most groups are mixed and a few updates show.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiouyhlmnrst"  # half of the alphabet
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
CHAT = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"

REWARD = f"""
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = float(solution_str[:1] in {VOWELS!r})
    return {{"score": right, "acc": right}}
"""


def make_model(folder: Path) -> Path:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


def make_data(file: Path, rows: int) -> Path:
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
    """Writes model/, train.parquet, test.parquet and reward.py into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    make_data(folder / "train.parquet", rows)
    make_data(folder / "test.parquet", 16)
    (folder / "reward.py").write_text(REWARD)
    return folder


def overrides(folder: Path, prompts: int = 4, n: int = 8, response: int = 16) -> list[str]:
    """The Hydra overrides of a tiny GPG run on a CPU, without steps, logging and checkpoints."""
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
    ]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
