"""Which models share prefixes, and that the check on a batch's own rows finds those that must not.

Models: tiny configurations of transformers, and models like those that people build. Each is refused, or its gradient
over a tree is that of each row alone, in fp64 with eager attention. The engine is veRL's without FSDP; steps of real
workers are below.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exactness import assert_same, by_definition, difference, recording, settled, step
from tensordict import TensorDict
from transformers import AutoConfig, AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from gpg_verl.training.passes import Passes
from gpg_verl.training.self_check import SelfCheck, longest_groups
from gpg_verl.training.shortcuts import unsupported_model

# Sizes, by the names that configurations have for them.
SIZES = {
    name: size
    for names, size in (
        ("vocab_size", 99),
        ("max_position_embeddings n_positions n_ctx max_seq_len seq_length", 512),
        ("intermediate_size n_inner ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim", 48),
        ("hidden_size n_embd d_model dim embed_dim word_embed_proj_dim", 32),
        ("moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size", 16),
        ("q_lora_rank kv_lora_rank v_head_dim qk_head_dim", 16),
        ("head_dim qk_rope_head_dim qk_nope_head_dim", 8),
        ("num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads", 4),
        ("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
        ("num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers", 2),
        ("num_key_value_heads num_experts_per_tok moe_topk moe_k eos_token_id", 2),
        ("n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace bos_token_id", 1),
        ("zero_expert_num pad_token_id", 0),
        ("attention_dropout attn_pdrop attention_probs_dropout_prob hidden_dropout_prob dropout layerdrop", 0.0),
        ("activation_dropout hidden_dropout resid_pdrop embd_pdrop residual_dropout", 0.0),
    )
    for name in names.split()
}
SPECIAL = ("head_dim", "pad_token_id", "bos_token_id", "eos_token_id")  # taken where a configuration has none


def tiny_model(kind: str, **more):
    """A model of random weights, in fp64 with eager attention."""
    text = AutoConfig.for_model(kind).get_text_config()
    known = {k for k in {*text.to_dict(), *SPECIAL} if k not in text.attribute_map and hasattr(text, k)}
    known = {k for k in known if not isinstance(getattr(type(text), k, None), property)}
    sizes = {k: v for k, v in SIZES.items() if k in known and (k in SPECIAL or getattr(text, k) is not None)}
    if "kv_lora_rank" in sizes and "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = 4
    config = type(text)(**{**sizes, **more})
    eager = {"attn_implementation": "eager"}
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        eager["experts_implementation"] = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **eager).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


class Engine(FSDPEngineWithLMHead):
    """veRL's engine around a plain module."""

    def __init__(self, model, dtype=torch.float32):  # the dtype of autocast; fp32: none
        self.module, self._autocast_dtype, self.scaler, self.calls = model, dtype, None, 0
        self.pad_to_length, self.use_ulysses_sp = False, False
        self.ulysses_sequence_parallel_size, self.ulysses_device_mesh = 1, None
        self.engine_config = SimpleNamespace(entropy_from_logits_with_chunking=False, entropy_checkpointing=False)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def forward_backward_batch(self, *args, **kwargs):
        self.calls += 1
        return super().forward_backward_batch(*args, **kwargs)


def rows(lengths=(40, 55, 70, 70, 80), prompt=30, eos=None) -> TensorDict:
    """A group: responses that share nothing, beginnings of two lengths, and everything."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(5, 99, (count,), generator=generator)

    start, first = tokens(20), tokens(prompt)
    begins = [start[:0], start, torch.cat([start, tokens(10)])]
    responses = [torch.cat([begins[i % 3], tokens(length)])[:length] for i, length in enumerate(lengths)]
    responses.append(responses[-1].clone())
    if eos is not None:
        for response in responses:
            response[[9, 31]] = eos
    return batch([first] * len(responses), responses)


def batch(prompts, responses) -> TensorDict:
    def jagged(parts):
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    ids = [torch.cat(row) for row in zip(prompts, responses, strict=True)]
    ones = jagged(map(torch.ones_like, responses))
    data = TensorDict(
        {
            "input_ids": jagged(ids),
            "position_ids": jagged(torch.arange(len(row)) for row in ids),
            "prompts": jagged(prompts),
            "responses": jagged(responses),
            "response_mask": ones,
            "loss_mask": ones,
            "number": torch.arange(len(ids)),
        },
        batch_size=len(ids),
    )
    settings = {"temperature": 1.0, "use_remove_padding": False, "use_dynamic_bsz": False, "use_fused_kernels": False}
    tu.assign_non_tensor(data, **settings, micro_batch_size_per_gpu=3)
    return data


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    if torch.distributed.is_initialized():
        yield
        return
    place = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def found(model, data, dtype=torch.float32, longest=110) -> tuple[str | None, int]:
    """What the check on rows says of trees, and how many passes over the group it took."""
    engine = Engine(model, dtype)
    check = SelfCheck(Passes(engine, entropy_has_gradient=False))
    check("trees", data, longest=longest, images=False)
    return check.refused.get("trees"), engine.calls


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def apart(model, data) -> float:
    """How far the gradient over trees is from that of each row alone."""

    def weighted(model_output, data, dp_group=None):
        prompts, log_probs = data["prompts"].offsets().diff().tolist(), model_output["log_probs"].unbind()
        parts = zip(data["number"].tolist(), prompts, log_probs, strict=True)
        return sum((1 + n % 3 / 2) * row[prompt - 1 : -1].sum() for n, prompt, row in parts), {}

    engine = Engine(model)
    model.zero_grad()
    with Passes(engine, entropy_has_gradient=False).during_update(trees=True):
        engine.forward_backward_batch(data, weighted)
    trees = gradient(model)
    model.zero_grad()
    for n, (ids, prompt) in enumerate(zip(data["input_ids"].unbind(), data["prompts"].unbind(), strict=True)):
        log_probs = model(ids[None], use_cache=False).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        ((1 + n % 3 / 2) * log_probs.gather(-1, ids[len(prompt) :, None]).sum()).backward()
    return difference(trees, gradient(model))


# ---- transformers' models

SHARED = """
apertus arcee aria_text bitnet cohere deepseek_v3 ernie4_5 ernie4_5_moe flex_olmo fuyu gemma glm glm4 glm4_moe
glm4_moe_lite got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense
hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe lfm2 llama longcat_flash minimax_m2 ministral3 mixtral nanochat olmo olmo2
olmoe persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2 youtu
"""

REFUSED = {
    "has layers of sliding_attention": """
        afmoe cohere2 cohere2_moe cwm exaone4 exaone_moe gemma2 gemma3_text gemma4_text gpt_oss ministral
        modernbert-decoder olmo3 vaultgemma""",
    "has layers of chunked_attention": "llama4_text",
    "has layers of linear_attention": "minimax olmo_hybrid qwen3_5_text qwen3_next",
    "has layers of mamba": "falcon_mamba mamba",
    "has layers of hybrid": "falcon_h1",
    "has state-space layers": "rwkv xlstm",
    "has a sliding window": "laguna mellum mistral moshi recurrent_gemma",
    "(ALiBi)": "bloom mpt",
    "does not go through transformers' registry": """
        big_bird ctrl diffllama falcon gpt_neox_japanese megatron-bert mvp openai-gpt rembert roformer trocr xglm
        xlnet""",
    "its mask is not only causal (bidirectional_mask_function)": """
        bart blenderbot data2vec-text electra marian mbart pegasus plbart""",
    "it changes the sequence or its mask before attention": "biogpt doge glm_moe_dsa opt",
    "computed both ways, log-probs are": "phimoe",
}


@pytest.mark.parametrize("kind", SHARED.split())
def test_models_that_share_prefixes(kind):
    model, data = tiny_model(kind), rows()
    assert unsupported_model(model.config) is None
    assert found(model, data)[0] is None
    assert apart(model, data) < 1e-5


@pytest.mark.parametrize(
    ("kind", "reason"), [(kind, reason) for reason, kinds in REFUSED.items() for kind in kinds.split()]
)
def test_models_that_do_not_and_why(kind, reason):
    said = unsupported_model(AutoConfig.for_model(kind).get_text_config())
    if said is None:
        model = tiny_model(kind)
        said = found(model, rows())[0]
        assert type(model).__name__ in said
        assert "rows of up to 110 tokens" in said
    assert reason in said


# ---- models like those that people build


def own_window(model):
    """A mask of its own, by transformers' functions."""
    from transformers.masking_utils import create_causal_mask, sliding_window_overlay
    from transformers.models.llama import modeling_llama

    def windowed(*args, **kwargs):
        return create_causal_mask(*args, **kwargs, and_mask_function=sliding_window_overlay(16))

    return (modeling_llama, "create_causal_mask", windowed)


def documents_that_end(model):
    """Whatever stands before an end of text is out of sight."""
    from transformers.masking_utils import create_causal_mask
    from transformers.models.llama import modeling_llama

    ids = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: ids.append(args[0]))

    def of_one_document(*args, **kwargs):
        document = (ids[-1] == 2).cumsum(-1)

        def same(b, h, q, k):
            return document[b, q] == document[b, k]

        return create_causal_mask(*args, **kwargs, and_mask_function=same)

    return (modeling_llama, "create_causal_mask", of_one_document)


def a_mask_in_memory(model):
    from transformers.models.llama import modeling_llama

    def windowed(config, inputs_embeds, *args, **kwargs):
        size = inputs_embeds.shape[1]
        near = torch.ones(size, size, dtype=torch.bool).tril().triu(-15)
        return torch.zeros(1, 1, size, size, dtype=torch.float64).masked_fill(~near, -torch.inf)

    return (modeling_llama, "create_causal_mask", windowed)


def log_n_scaling(model):
    """Queries grow with their place in the sequence from the 64th on."""
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, args, out: out * (1 + torch.arange(out.shape[1]).div(64).floor().log1p())[:, None]
        )


def ntk_by_length(model):
    rotary = model.model.rotary_emb
    return (rotary, "forward", lambda x, position_ids: type(rotary).forward(rotary, x, position_ids * 64 / x.shape[1]))


def no_position_ids(model):
    """Places in the sequence are counted, whatever the position ids say."""
    rotary = model.model.rotary_emb

    def counted(x, position_ids):
        return type(rotary).forward(rotary, x, torch.arange(x.shape[1]).expand(len(x), -1))

    return (rotary, "forward", counted)


OWN = {
    own_window: "its mask is not only causal (sliding_window_overlay)",
    documents_that_end: "its mask is not only causal (documents_that_end)",
    a_mask_in_memory: "it changes the sequence or its mask before attention",
    log_n_scaling: "computed both ways",
    ntk_by_length: "computed both ways",
    no_position_ids: "computed both ways",
}


@pytest.mark.parametrize("change", OWN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_models_of_ones_own_are_seen_in_every_precision(monkeypatch, change, dtype):
    """The checks of these are in autocast, as the engine's; the weights are fp32."""
    model = tiny_model("llama").float()
    plain, _ = found(model, rows(eos=2), dtype)
    assert plain is None
    if (patch := change(model)) is not None:
        monkeypatch.setattr(*patch)
    reason, passes = found(model, rows(eos=2), dtype)
    assert OWN[change] in reason
    assert passes <= 4


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LAYERS = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("llama", {"rope_parameters": DYNAMIC}, "(dynamic)"),
        ("laguna", {**LAYERS, "sliding_window": 0, "rope_parameters": {"full_attention": DYNAMIC}}, "(dynamic)"),
        ("mellum", {**LAYERS, "sliding_window": 0, "rope_parameters": {"full_attention": DYNAMIC}}, "(dynamic)"),
        ("gemma3_text", {**LAYERS, "sliding_window": 0, "rope_parameters": {"full_attention": DYNAMIC}}, "(dynamic)"),
        ("llama4_text", {**LAYERS, "no_rope_layers": [0, 0]}, "(attn_temperature_tuning)"),
        ("falcon", {"alibi": True}, "(ALiBi)"),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, None),
    ],
)
def test_what_a_configuration_says(kind, more, reason):
    said = unsupported_model(AutoConfig.for_model(kind, **more))
    assert said is None if reason is None else reason in str(said), said


def test_a_reason_names_the_cause_and_is_not_remembered():
    """Latent attention has values of another size than queries: what a refused call gives must fit all the same."""
    model = tiny_model("deepseek_v3")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    engine = Engine(model)
    check = SelfCheck(Passes(engine, entropy_has_gradient=False))
    check("trees", rows(), longest=110, images=False)
    assert check.refused["trees"].endswith("its attention takes dropout")
    check.refused.clear()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    check("trees", rows(), longest=110, images=False)
    assert check.refused == {}


@pytest.mark.parametrize(
    ("checked", "asked", "due"),
    [
        ([], (1, False), True),
        ([(100, False)], (199, False), False),
        ([(100, False)], (200, False), True),
        ([(100, False)], (10, True), True),  # the first images
        ([(100, True)], (199, True), False),
        ([(100, False), (200, False)], (399, False), False),
    ],
)
def test_when_rows_are_checked(checked, asked, due):
    model = tiny_model("llama")
    check = SelfCheck(Passes(Engine(model), entropy_has_gradient=False))
    for longest, images in checked:
        check("trees", rows(lengths=(4, 5), prompt=4), longest, images)
    assert check.due("trees", *asked) == due
    assert check.due("rows", *asked)  # of each kind for itself
    check.refused["trees"] = "found to be wrong"
    assert not check.due("trees", *asked)


def test_the_longest_group_with_its_later_turns_and_the_longest_with_images():
    a, b, c = (torch.full((3,), token) for token in (11, 12, 13))
    prompts = [a, b, torch.cat([a, a]), c, b, c, a]
    responses = [torch.full((n,), 20) for n in (4, 6, 9, 2, 1, 3, 2)]
    data = batch(prompts, responses)
    assert sorted(longest_groups(data, [])) == [0, 2, 6]
    assert sorted(longest_groups(data, [False, False, False, True, False, True, False])) == [0, 2, 3, 5, 6]


# ---- in real steps


def test_the_first_batch_is_checked_and_longer_ones(one, tiny_folder, monkeypatch):
    """Parameters, gradients and schedule are untouched by it; its seconds are in the metrics."""
    passes, checks = [], []  # all that are made over rows; of each check, its own
    check, forward = SelfCheck.__call__, FSDPEngineWithLMHead.forward_backward_batch

    def checked(self, *args):
        before = len(passes)
        check(self, *args)
        checks.append(len(passes) - before)

    def counted(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(SelfCheck, "__call__", checked)
    monkeypatch.setattr(FSDPEngineWithLMHead, "forward_backward_batch", counted)
    rollouts = recording(seed=3)
    first = step(one, settled(tiny_folder), rollouts)
    assert_same(first.gradients, [by_definition(tiny_folder, rollouts)])
    assert first.scheduled == 1
    assert len(checks) == 1
    assert checks[0] <= 4
    assert first.metrics["gpg/check_seconds"] > 0
    again = step(one, settled(tiny_folder), rollouts, steps=2)
    assert len(checks) == 2
    assert again.metrics["gpg/check_seconds"] == 0
    assert one.local.worker.actor.self_check.longest["trees"] == max(t["seq_len"] for t in rollouts.tags.values())


def siblings_seen(monkeypatch):
    def earlier(tree, queries, keys):
        return torch.as_tensor(keys).numpy()[None, :] <= torch.as_tensor(queries).numpy()[:, None]

    monkeypatch.setattr("gpg_verl.training.attention.attention_mask", earlier)


def positions_that_go_on_counting(monkeypatch):
    original = Passes._tree_inputs

    def inputs(self, micro_batch):
        model_inputs, rest = original(self, micro_batch)
        model_inputs["position_ids"] = torch.arange(model_inputs["input_ids"].shape[1]).unsqueeze(0)
        return model_inputs, rest

    monkeypatch.setattr(Passes, "_tree_inputs", inputs)


def a_weight_counted_once(monkeypatch):
    from gpg_verl.algorithm import tree as tree_module

    original = tree_module.build_tree

    def once(*args):
        tree = original(*args)
        first = np.sort(np.unique(tree.pair, return_index=True)[1])
        return dataclasses.replace(tree, flat=tree.flat[first], pair=tree.pair[first])

    monkeypatch.setattr("gpg_verl.training.passes.build_tree", once)


@pytest.mark.parametrize("mistake", [siblings_seen, positions_that_go_on_counting, a_weight_counted_once])
def test_a_mistake_is_found_before_the_first_update(one, tiny_folder, monkeypatch, capsys, mistake):
    rollouts = recording(seed=3)
    expected = by_definition(tiny_folder, rollouts)
    mistake(monkeypatch)
    checked = step(one, settled(tiny_folder), rollouts)
    assert "computed both ways, log-probs are" in capsys.readouterr().out
    assert "LlamaForCausalLM with attention sdpa in layers of full_attention" in checked.trainer.unsupported["trees"]
    assert checked.metrics["gpg/tokens_shared"] == 0
    assert_same(checked.gradients, [expected])
    monkeypatch.setattr(SelfCheck, "due", lambda *args: False)
    unchecked = step(one, settled(tiny_folder), rollouts)
    assert difference(unchecked.gradients[0], expected) > 1e-3


def test_what_a_model_asks_for_later_is_seen_before_an_update(one, tiny_folder, monkeypatch):
    """The update is made row by row, and sharing is off from then on."""
    from gpg_verl.training.attention import TreeAttention

    attend, check = TreeAttention.attend, SelfCheck.__call__

    def then(self, *args):
        check(self, *args)
        assert self.refused == {}
        monkeypatch.setattr(TreeAttention, "attend", lambda *args, **kwargs: attend(*args, **kwargs, softcap=30.0))

    monkeypatch.setattr(SelfCheck, "__call__", then)
    rollouts = recording(seed=3)
    result = step(one, settled(tiny_folder), rollouts)
    assert "LlamaForCausalLM: its attention takes softcap" in result.trainer.unsupported["trees"]
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
