"""Passes over prefix trees leave the gradient as it is: real veRL steps in fp32, and what goes the plain way."""

from __future__ import annotations

from collections import Counter

import gpu_stand_ins
import pytest
import torch
from exactness import (
    ACTOR,
    MIXED,
    assert_same,
    by_definition,
    recording,
    settled,
    step,
    without_shortcut,
)

import gpg_verl.algorithm.tree as tree_module
from gpg_verl.training import attention
from gpg_verl.training import passes as passes_module

MODEL = "actor_rollout_ref.model"


@pytest.mark.parametrize("tokens", [24, 40])
def test_a_group_is_cut_by_the_budget(actors, tiny_folder, tokens):
    """A row has up to 22 tokens. On two workers the numbers of passes differ; one makes some with nothing in them."""
    config = settled(tiny_folder, f"{ACTOR}.use_dynamic_bsz=True", f"{ACTOR}.ppo_max_token_len_per_gpu={tokens}")
    rollouts = recording([[1, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0], *[[0] * 4] * 5], seed=8)
    result = step(actors, config, rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])


def test_passes_are_no_longer_than_is_fast(one, tiny_folder, monkeypatch):
    """Between prompts that share nothing a longer pass is cut, far below the budget; no token is computed twice."""
    passes, build = [], tree_module.build_tree

    def noted(*args):
        passes.append(len(tree := build(*args)))
        return tree

    rollouts = recording(MIXED, seed=4)
    whole = step(one, settled(tiny_folder), rollouts)
    monkeypatch.setattr(passes_module, "build_tree", noted)
    monkeypatch.setitem(passes_module.MAX_TOKENS_PER_PASS, "cpu", 1)
    result = step(one, settled(tiny_folder), rollouts)
    assert_same(result.gradients, whole.gradients)
    computed = whole.metrics["gpg/tokens_computed"]
    passes = passes[-sum(0 < sum(group) < len(group) for group in MIXED) :]  # before them, those of the check
    assert result.metrics["gpg/tokens_computed"] == sum(passes) == computed
    assert max(passes) < computed / 2


def test_by_one_call_of_flash_attention_a_layer(one, tiny_folder, monkeypatch):
    """As on a GPU with sdpa, here through kernels that stand in for torch's: groups are cut, and what a pass needs to
    know of its tree is sent in one copy.
    """
    counts = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(attention, "supports_flash", gpu_stand_ins.flash_everywhere)
    monkeypatch.setattr(attention, "torchs_flash", counted("calls", attention.torchs_flash))
    monkeypatch.setattr(passes_module, "to_device", counted("copies", passes_module.to_device))
    monkeypatch.setattr(passes_module, "build_tree", counted("passes", tree_module.build_tree))
    tokens = [f"{ACTOR}.use_dynamic_bsz=True", f"{ACTOR}.ppo_max_token_len_per_gpu=40"]
    rollouts = recording(seed=8)
    result = step(one, settled(tiny_folder, *tokens), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
    passes = counts["passes"]
    assert passes > 2
    layers = one.local.engine.module.config.num_hidden_layers
    assert counts == {"passes": passes, "copies": passes, "calls": layers * passes}


def test_a_single_valid_group(actors, tiny_folder):
    """Less than a row a worker counts: two of four rows, of which each is one token."""
    rollouts = recording([[1, 0, 0, 0], *[[0] * 4] * 7], seed=9, response=(1, 1), words=1)
    result = step(actors, settled(tiny_folder), rollouts)
    # All rows are alike, so their weights, which sum to zero, meet in one place.
    assert result.gradients[0].abs().max() < 1e-6
    assert result.metrics["gpg/positions_scored"] == actors.ranks


def test_an_odd_number_of_rows(actors, tiny_folder):
    """Nine: with two workers one is given a row that it does not compute."""
    rollouts = recording([[1, 0, 0], *[[0] * 3] * 4, [1, 1, 0], [0, 1, 0], [0] * 3], seed=10)
    result = step(actors, settled(tiny_folder), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
    assert result.metrics["gpg/rows_dropped"] == 24 - 9


def test_duplicates(one, tiny_folder):
    rollouts = recording(MIXED, seed=4, response=(1, 2), words=2)
    result = step(one, settled(tiny_folder), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
    assert result.metrics["gpg/tokens_shared"] > 2 * result.metrics["gpg/tokens_computed"]


def test_tokens_that_the_policy_did_not_write(one, tiny_folder):
    rollouts = recording(seed=6)
    generator = torch.Generator().manual_seed(0)
    for row in rollouts.rows.values():
        mask = torch.randint(0, 3, (len(row["responses"]),), generator=generator).clamp(max=1)
        mask[0] = 1
        row["response_mask"] = row["loss_mask"] = mask
        row["rm_scores"] *= mask
    rollouts_of = {key: row["rm_scores"].sum() for key, row in rollouts.rows.items()}
    assert 0 < sum(rollouts_of.values()) < len(rollouts_of)
    whole = step(one, settled(tiny_folder), rollouts, without_shortcut(1))
    for shared in (True, False):
        part = step(one, settled(tiny_folder, f"+algorithm.gpg.share_prefixes={shared}"), rollouts)
        assert_same(part.gradients, whole.gradients)


OTHERS = {
    "checkpointing": [f"{MODEL}.enable_gradient_checkpointing=True"],
    "remove-padding": [f"{MODEL}.use_remove_padding=True"],
    "offload": [f"{ACTOR}.fsdp_config.param_offload=True", f"{ACTOR}.fsdp_config.optimizer_offload=True"],
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_other_engines(tiny_folder, settings):
    from actors import Actors

    rollouts = recording(seed=3)
    expected = by_definition(tiny_folder, rollouts)
    with Actors(settled(tiny_folder, *settings)) as actors:
        actors.call("record_gradients", (0.1,))
        for shared in (True, False):
            config = settled(tiny_folder, *settings, f"+algorithm.gpg.share_prefixes={shared}")
            result = step(actors, config, rollouts)
            assert_same(result.gradients, [expected])
            assert bool(result.metrics["gpg/tokens_shared"]) == shared


# ---- what the check finds goes the plain way: tests/test_self_check.py


def test_a_model_with_attention_of_its_own_goes_row_by_row(one, tiny_folder, monkeypatch):
    """From the next batch on with the vocabulary only where a token is scored, as that is then found to be exact."""
    from transformers.modeling_utils import AttentionInterface

    own = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setattr(AttentionInterface, "get_interface", lambda self, name, default: own)
    rollouts = recording(seed=3)
    result = step(one, settled(tiny_folder), rollouts, steps=2)
    assert "does not go through transformers' registry" in result.trainer.unsupported["trees"]
    assert result.trainer.unsupported["rows"] is None
    assert result.metrics["gpg/tokens_shared"] == 0
    assert result.metrics["gpg/positions_scored"] < result.metrics["gpg/tokens_computed"]
    assert_same(result.gradients[:1], [by_definition(tiny_folder, rollouts)])


@pytest.mark.parametrize("rows", [None, "lm_head sees more"])
def test_a_batch_with_unsupported_inputs_goes_row_by_row(one, tiny_folder, monkeypatch, rows):
    """Only then are passes over rows compared with veRL's; where they are not exact, they are veRL's."""
    from gpg_verl.training.self_check import SelfCheck

    monkeypatch.setattr("gpg_verl.training.actor.unsupported_inputs", lambda data, config: "its rows bring audio")
    monkeypatch.setattr(SelfCheck, "_difference", lambda self, kind, data: None if kind == "trees" else rows)
    rollouts = recording(seed=3)
    result = step(one, settled(tiny_folder), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
    m = result.metrics
    assert m["gpg/tokens_shared"] == 0
    assert (m["gpg/positions_scored"] < m["gpg/tokens_computed"]) == (rows is None)


@pytest.mark.parametrize(("positions", "columns"), [([0, 1, 2, 0, 1], 1), ([0, 1, 2, 1, 2], 2), ([0, 2, 3, 0, 1], 2)])
def test_positions_tell_tokens_apart_where_they_do_not_just_count(positions, columns):
    from gpg_verl.training.passes import symbols_of

    offsets = torch.tensor([0, 3, 5])
    ids, positions = (torch.nested.nested_tensor_from_jagged(torch.tensor(x), offsets) for x in ([7] * 5, positions))
    symbols = symbols_of({"input_ids": ids, "position_ids": positions}, None)
    assert symbols.reshape(5, -1).shape[1] == columns


# ---- what goes the plain way: models by their configuration, tests/test_self_check.py


@pytest.mark.parametrize(
    ("override", "model", "trees", "rows"),
    [
        ("data.seed=1", {}, None, None),
        ("+algorithm.gpg.share_prefixes=False", {}, "share_prefixes=False", None),
        (f"{MODEL}.use_fused_kernels=True", {}, "use_fused_kernels=True", "use_fused_kernels=True"),
        (f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2", {}, *["ulysses_sequence_parallel_size=2"] * 2),
        ("data.seed=1", {"use_sliding_window": True, "sliding_window": 8}, "sliding_attention", None),
    ],
)
def test_settings_and_models_that_go_the_plain_way(tiny_folder, tmp_path, override, model, trees, rows):
    from transformers import AutoConfig

    from gpg_verl.training.shortcuts import model_config, unsupported

    config = settled(tiny_folder, override)
    AutoConfig.for_model("qwen2", max_window_layers=0, **model).save_pretrained(tmp_path)
    config.actor_rollout_ref.model.path = str(tmp_path)
    found = unsupported(config, model=model_config(config))
    for seen, expected in ((found["trees"], trees), (found["rows"], rows)):
        assert seen == expected if expected is None else expected in seen


def test_the_first_lines_of_a_run_say_it(tiny_folder):
    from gpg_verl.training.trainer import sharing_status

    assert "prefix sharing is on" in sharing_status({"trees": None, "rows": None}, checked=True)
    assert "if the first update finds it exact" in sharing_status({"trees": None, "rows": None}, checked=False)
    line = sharing_status({"trees": "X", "rows": "X"}, checked=True)
    assert "prefix sharing is off: X; the vocabulary for every token: X" in line
