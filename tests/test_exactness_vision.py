"""The same exactness with images in the batch: real steps of tiny Qwen2-VL and Qwen2.5-VL models, in fp32."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from exactness import (
    ACTOR,
    ALL_VALID,
    MIXED,
    PROMPTS,
    assert_same,
    by_definition,
    difference,
    settled,
    step,
    without_shortcut,
)
from transformers import AutoConfig

KINDS = ("qwen2_vl", "qwen2_5_vl")
MODE = "seq-mean-token-mean"  # as in the paper's vision code


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.make_vision(folder / "model", request.param)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def actors(request, folder):
    from actors import Actors

    with Actors(settled(folder), ranks=request.param) as actors:
        actors.call("record_gradients", *[(0.1,)] * request.param)
        yield actors


def recording(folder: Path, rewards=MIXED, *, text_only=(), response=(1, 16), seed=0):
    """Random responses to one image a group; the groups whose numbers are in `text_only` have none."""
    from actors import Recording
    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "model")
    generator = np.random.default_rng(seed)
    words = range(8, model.config.text_config.vocab_size)  # behind the special tokens

    def prompt(number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        text = torch.from_numpy(generator.choice(words, 3))
        if number in text_only:
            return text, {}
        height, width = generator.integers(1, 4, 2) * 28
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = dict(processor(images=[pixels], return_tensors="pt"))
        frames, high, wide = image["image_grid_thw"].T
        image["images_seqlens"] = torch.repeat_interleave(high * wide, frames)  # as veRL's agent loop adds it
        tokens = int(image["image_grid_thw"].prod()) // processor.merge_size**2
        c = model.config
        shown = [c.vision_start_token_id, *[c.image_token_id] * tokens, c.vision_end_token_id]
        return torch.cat([torch.tensor(shown), text]), image

    prompts = [prompt(number) for number in range(len(rewards))]
    rows = [(number, reward) for number, group in enumerate(rewards) for reward in group]
    rows = [rows[i] for i in generator.permutation(len(rows))]
    responses = [
        torch.from_numpy(generator.choice(words, generator.integers(response[0], response[1] + 1))) for _ in rows
    ]
    vision = []
    for (number, _), answer in zip(rows, responses, strict=True):
        ids, image = torch.cat([prompts[number][0], answer]), prompts[number][1]
        three, _ = model.model.get_rope_index(
            ids.unsqueeze(0),
            mm_token_type_ids=(ids == model.config.image_token_id).int().unsqueeze(0),
            image_grid_thw=image.get("image_grid_thw"),
        )
        vision.append((torch.cat([torch.arange(len(ids)).unsqueeze(0), three[:, 0]]), image))
    return Recording(
        prompts=[prompts[number][0] for number, _ in rows],
        responses=responses,
        rewards=[reward for _, reward in rows],
        uids=[f"uid{number:05d}" for number, _ in rows],
        vision=vision,
    )


@pytest.mark.parametrize("updates", [1, 2], ids=["K=1", "K=2"])
def test_rows_without_gradient_are_left_out(actors, folder, updates):
    config = settled(folder, f"{ACTOR}.loss_agg_mode={MODE}", f"{ACTOR}.ppo_mini_batch_size={PROMPTS // updates}")
    rollouts = recording(folder, seed=updates)
    whole = step(actors, config, rollouts, without_shortcut(updates))
    part = step(actors, config, rollouts)
    assert part.metrics["gpg/rows_dropped"] >= 8
    expected = [g for g in whole.gradients if g.any()]
    assert_same(part.gradients, expected)
    assert difference(part.parameters, whole.parameters) <= 1e-6


@pytest.mark.parametrize("text_only", [(), (0, 2)], ids=["images", "images and text"])
def test_the_gradient_is_that_of_the_definition(actors, folder, text_only):
    rollouts = recording(folder, text_only=text_only, seed=3)
    expected = by_definition(folder, rollouts, mode=MODE)
    for shared in (True, False):
        settings = (f"{ACTOR}.loss_agg_mode={MODE}", f"+algorithm.gpg.share_prefixes={shared}")
        result = step(actors, settled(folder, *settings), rollouts)
        assert_same(result.gradients, [expected])
        assert bool(result.metrics["gpg/tokens_shared"]) == shared


def test_images_that_look_alike_are_shared_and_others_are_not(actors, folder):
    """Two groups of the same words about images of one size: what tells them apart is the image."""
    rollouts = recording(folder, [[1, 0], [0, 1], *[[0, 0]] * 2], seed=6, response=(3, 3))
    rows = list(rollouts.rows.values())
    one, other = (next(row for row in rows if row["uid"] == f"uid{number:05d}") for number in (0, 1))
    start = len(one["prompts"])
    pixels = torch.randn(one["multi_modal_inputs"]["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    for key, row in rollouts.rows.items():
        if row["uid"] == other["uid"]:
            answer = row["responses"]
            row["prompts"] = one["prompts"]
            row["input_ids"] = torch.cat([one["prompts"], answer])
            row["position_ids"] = one["position_ids"][:, : start + len(answer)]
            row["multi_modal_inputs"] = {**one["multi_modal_inputs"], "pixel_values": pixels}
            rollouts.tags[key].update(prompt_len=start, seq_len=start + len(answer))
    result = step(actors, settled(folder, f"{ACTOR}.loss_agg_mode={MODE}"), rollouts)
    assert_same(result.gradients, [by_definition(folder, rollouts, mode=MODE)])
    assert result.metrics["gpg/tokens_shared"]


def test_rows_that_bring_what_trees_are_not_known_for_go_row_by_row(actors, folder, capfd):
    """One row is enough, on whichever worker. Seven rows fill no grid of passes of two."""
    rollouts = recording(folder, [[1, 0, 0], [0, 1], [1, 0], *[[0, 0]] * 5], seed=6)
    expected = [by_definition(folder, rollouts, mode=MODE)]
    row = next(row for row in rollouts.rows.values() if row["uid"] == "uid00001")
    row["multi_modal_inputs"] = {**row["multi_modal_inputs"], "pixel_attention": torch.ones(1, 4)}
    for _ in range(2):
        result = step(actors, settled(folder, f"{ACTOR}.loss_agg_mode={MODE}"), rollouts)
        assert_same(result.gradients, expected)
        assert result.metrics["gpg/tokens_shared"] == 0 < result.metrics["gpg/tokens_computed"]
    assert capfd.readouterr().out.count("off where rows bring pixel_attention") <= 1  # in a worker's life


@pytest.mark.parametrize("shared", [True, False], ids=["trees", "rows"])
def test_a_text_that_holds_the_token_of_an_image_is_named_before_an_update(actors, folder, shared):
    rollouts = recording(folder, text_only=(0,), seed=3)
    image_token = AutoConfig.from_pretrained(folder / "model").image_token_id
    row = next(row for row in rollouts.rows.values() if row["uid"] == "uid00000")
    row["prompts"] = torch.cat([row["prompts"][:-1], torch.tensor([image_token])])
    row["input_ids"] = torch.cat([row["prompts"], row["responses"]])
    config = settled(folder, f"{ACTOR}.loss_agg_mode={MODE}", f"+algorithm.gpg.share_prefixes={shared}")
    named = rf"a row beside rows with images has 1 tokens {image_token} .*pixel_values for 0; its prompt ends in"
    with pytest.raises((ValueError, RuntimeError), match=named):  # RuntimeError: of another process
        step(actors, config, rollouts)
    assert actors.call("recorded")[0][0] == []


def test_padding_rows_have_no_image_and_no_gradient(actors, folder):
    """32 rows on one worker or two take padding in forward passes of at most 7, row by row."""
    config = settled(
        folder,
        "+algorithm.gpg.share_prefixes=False",
        f"{ACTOR}.loss_agg_mode={MODE}",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=7",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=7",
    )
    rollouts = recording(folder, ALL_VALID, text_only=(1,), seed=5)
    result = step(actors, config, rollouts)
    padding = [row for key, row in actors.recording.rows.items() if key.startswith("pad")]
    assert padding
    assert not any(row["multi_modal_inputs"] for row in padding)
    assert_same(result.gradients, [by_definition(folder, rollouts, mode=MODE)])


def with_log_probs(actors, rollouts, seen=None):
    """The rollouts with the log-probs that a rollout gives which sees `seen` (rollouts like these, maybe with other
    images) and computes in another order.
    """
    seen = seen or copy.deepcopy(rollouts)
    actors.call("reset", *[(None,)] * actors.ranks)
    actors.recording = seen
    batch = seen.batch()
    batch.extra_info = {"calculate_entropy": False, "compute_loss": False, "temperature": 1.0}
    actors.compute_log_prob(batch)
    for key, row in rollouts.rows.items():
        exact = seen.rows[key]["log_probs"][-len(row["responses"]) - 1 : -1]
        row["rollout_log_probs"] = exact + 1e-6
        rollouts.tags[key]["min_global_steps"] = 0  # what the trainer has
    return rollouts


def other_images(rollouts, change):
    """The same rollouts with `change` made to their pixels."""
    changed = copy.deepcopy(rollouts)
    for row in changed.rows.values():
        if row["multi_modal_inputs"]:
            row["multi_modal_inputs"]["pixel_values"] = change(row["multi_modal_inputs"]["pixel_values"])
    return changed


@pytest.fixture(scope="module")
def processor(folder):
    from verl.utils.tokenizer import hf_processor

    return hf_processor(str(folder / "model"))


def test_trainer_and_rollout_that_agree_on_images(actors, folder, processor, capsys):
    rollouts = with_log_probs(actors, recording(folder))
    result = step(actors, settled(folder), rollouts, processor=processor)
    assert result.metrics["gpg/updates"] == 1
    (gap,) = re.findall(r"agree on images: their log-probs are (\S+) apart", capsys.readouterr().out)
    assert float(gap) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        # vLLM's dummy loading: weight and bias of the normalisation within 1e-3 of 0, so hardly an image at all.
        lambda pixels: 1e-3 * pixels - 5e-4,
        lambda pixels: pixels[:, torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))],
    ],
    ids=["normalisation", "channels"],
)
def test_a_rollout_that_sees_other_images_ends_the_run_after_one_update(actors, folder, processor, change):
    config = settled(folder, "actor_rollout_ref.rollout.load_format=dummy")
    rollouts = recording(folder)
    with_log_probs(actors, rollouts, other_images(rollouts, change))
    with pytest.raises(RuntimeError) as error:
        step(actors, config, rollouts, processor=processor)
    assert len(actors.call("recorded")[0][0]) == 1
    for part in ("disagree on images", "allowed is 0.0001", "One update was made", "set actor_rollout_ref.rollout."):
        assert part in str(error.value)
    accepted = settled(folder, "+algorithm.gpg.max_rollout_gap=10")
    assert step(actors, accepted, rollouts, processor=processor).metrics["gpg/updates"] == 1


def test_text_and_images_are_compared_apart_and_older_weights_not_at_all(actors, folder, processor, capsys):
    rollouts = with_log_probs(actors, recording(folder, ALL_VALID, text_only=(0, 1)))
    for key, row in rollouts.rows.items():
        if "uid00004" in key:
            rollouts.tags[key]["min_global_steps"] = -1
        if "uid00004" in key or "uid00000" in key:  # text of the same weights: more than the 2 % that may differ
            row["rollout_log_probs"] = row["rollout_log_probs"] - 1
    with pytest.raises(RuntimeError, match=r"disagree on text: .* of 8 rows.*The rollout samples from other weights"):
        step(actors, settled(folder), rollouts, processor=processor)
    assert re.search(r"agree on images: .* of 20 rows", capsys.readouterr().out)


def test_rows_of_one_length(actors, folder):
    """TransferQueue packs their position ids along the wrong axis; so it does with one row a worker."""
    config = settled(folder, f"{ACTOR}.loss_agg_mode={MODE}")
    rewards = [[1, 0, 0, 1], *[[0, 0, 0, 0]] * 7]
    rollouts = recording(folder, rewards, response=(4, 4), seed=4)
    result = step(actors, config, rollouts)
    assert_same(result.gradients, [by_definition(folder, rollouts, mode=MODE)])
