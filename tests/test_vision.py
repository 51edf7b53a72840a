"""Vision-language models on a CPU: real runs of the tiny Qwen2-VL and Qwen2.5-VL, and what makes them possible.

One run for each model carries the assertions. The Qwen2.5-VL's data mixes rows with an image and rows without.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from launch import launch, read
from PIL import Image

STEPS = 3
COLOURS = {" red": (220, 30, 30), " green": (30, 200, 30), " blue": (30, 30, 220)}

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = float(ground_truth in solution_str)
    return {"score": right, "acc": right}
"""


def picture(colour: tuple[int, int, int], seed: int) -> dict:
    """A PNG of one colour with noise, of one of several sizes."""
    noise = np.random.default_rng(seed)
    height, width = noise.choice([56, 84, 100], 2)
    pixels = np.clip(np.array(colour) + noise.integers(-30, 30, (height, width, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_data(file: Path, rows: int, text_every: int) -> None:
    """The colour of the picture is asked for; in every `text_every`-th row it is told instead, without a picture."""
    table = []
    for index in range(rows):
        name = list(COLOURS)[index % 3]
        text = bool(text_every) and index % text_every == 0
        question = f"Which colour?{name}" if text else "<image>Which colour?"
        table.append(
            {
                "data_source": "tiny/colours",
                "prompt": [{"role": "user", "content": question}],
                "images": [] if text else [picture(COLOURS[name], index)],
                "ability": "colours",
                "reward_model": {"style": "rule", "ground_truth": name},
                "extra_info": {"index": index},
            }
        )
    pd.DataFrame(table).to_parquet(file)


def make(folder: Path, kind: str, text_every: int = 0) -> Path:
    tiny.make_vision(folder / "model", kind)
    make_data(folder / "train.parquet", 64, text_every)
    make_data(folder / "test.parquet", 12, text_every)
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {
        "qwen2_vl": make(root / "qwen2_vl", "qwen2_vl"),
        "qwen2_5_vl": make(root / "qwen2_5_vl", "qwen2_5_vl", text_every=2),
    }


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def trained(request, folders) -> Path:
    folder = folders[request.param]
    process = launch(
        folder / "run",
        folder,
        "metrics",
        "data.max_prompt_length=32",
        "data.filter_overlong_prompts=True",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        f"trainer.save_freq={STEPS}",
        # Few rows, so that some micro-batches of the mixed data have no image at all.
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    )
    assert process.wait(timeout=400) == 0, (folder / "run/metrics.log").read_text()[-5000:]
    return folder / "run"


def test_rollout_and_trainer_see_the_same_images_after_every_update(trained):
    """In fp32 both sides agree to rounding, before the first update and with weights that went through the sync."""
    steps = read(trained / "metrics.jsonl")
    assert sorted(steps) == list(range(STEPS + 1))
    compared = [m["training/rollout_probs_diff_max"] for m in steps.values() if m.get("gpg/update_skipped") == 0]
    assert len(compared) >= 2
    assert max(compared) < 1e-6
    assert "rollout.load_format=auto" in (trained / "metrics.log").read_text()


def test_training_moves_and_no_row_is_lost(trained):
    steps = read(trained / "metrics.jsonl")
    for step in range(1, STEPS + 1):
        assert steps[step]["gpg/B"] == 32
        if not steps[step]["gpg/update_skipped"]:
            assert steps[step]["actor/grad_norm"] > 0
    assert "filter dataset len: 64" in (trained / "metrics.log").read_text()


def test_validation_and_checkpoint(trained):
    steps = read(trained / "metrics.jsonl")
    assert {0, STEPS} <= {step for step, m in steps.items() if "val-core/tiny/colours/acc/mean@1" in m}
    assert len((trained / f"validation/{STEPS}.jsonl").read_text().splitlines()) == 12
    saved = trained / f"checkpoints/global_step_{STEPS}/actor/huggingface"
    settings = json.loads((saved / "processor_config.json").read_text())
    # What is missing here is not missing where the checkpoint goes.
    assert settings["video_processor"]["merge_size"] == settings["image_processor"]["merge_size"] == 2


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_rows_without_an_image_send_zeros_through_the_vision_tower(kind, folders):
    """On its own, as in a micro-batch of the mixed data: the text is untouched, every parameter has a gradient of 0."""
    import verl  # noqa: F401  loads the plugin
    from transformers import AutoModelForImageTextToText
    from verl.models.transformers import qwen2_vl

    model = AutoModelForImageTextToText.from_pretrained(folders[kind] / "model").model
    ids = torch.tensor([[1, 8, 9, 2]])
    embeds, mask = qwen2_vl._get_input_embeds(model, ids, torch.ones_like(ids))
    assert torch.equal(embeds, model.get_input_embeddings()(ids))
    assert mask.sum() == 4
    embeds.sum().backward()
    gradients = [parameter.grad for parameter in model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_words_of_the_tiny_model_are_single_tokens(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    words = [" yes", " no", "</think>\n<answer>A</answer>"]
    folder = tiny.make_vision(tmp_path / "model", "qwen2_vl", words)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(" yes</think>\n<answer>A</answer> no")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [" yes", "</think>\n<answer>A</answer>", " no"]
    assert tokenizer.decode(ids) == " yes</think>\n<answer>A</answer> no"
    assert AutoConfig.from_pretrained(folder).text_config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("folder", "kind", "words", "error"),
    [
        ("new", "qwen3_vl", [" a"], "kind='qwen3_vl': allowed are qwen2_vl and qwen2_5_vl"),
        ("new", "qwen2_vl", [" a", " a"], "must be there once"),
        ("new", "qwen2_vl", ["<unk>"], "must be there once"),
        (".", "qwen2_vl", [" a"], "exists: remove it or choose another folder"),
    ],
)
def test_a_tiny_model_that_cannot_be_made_leaves_nothing(folder, kind, words, error, tmp_path):
    with pytest.raises((ValueError, FileExistsError), match=error):
        tiny.make_vision(tmp_path / folder, kind, words)
    assert list(tmp_path.iterdir()) == []
