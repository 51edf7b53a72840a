"""Prompts that are longer than the rollout takes, counted before Ray starts.

veRL's agent loops cut a text to its last `rollout.prompt_length` tokens without a word, and fail a session with images;
`data.truncation` is read by nobody (veRL 0.9.1). Counted are the rows that were read (data_files.py), rendered and
tokenized as in the agent loop; an image has as many tokens as its grid has cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpg_verl.launch.data_files import DataFile, Split, is_prompt
from gpg_verl.launch.facts import Advice, Facts
from gpg_verl.settings import GPGSettings

VERLS_LOOPS = ("single_turn_agent", "tool_agent")
SEES_BY_GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def long_prompts(facts: Facts) -> Iterator[str]:
    """What the rollout would cut; more than the run's settings allow stops it. Nothing cuts where veRL's filter leaves
    long ones out, or the user's own data set or agent loop decides. Files that cannot be read count nothing.
    """
    agent_loop = facts.get("actor_rollout_ref.rollout.agent.default_agent_loop")
    if facts.get("data.filter_overlong_prompts") or agent_loop not in VERLS_LOOPS:
        return
    limit = facts.get("actor_rollout_ref.rollout.prompt_length")
    unknown: dict[str, str] = {}
    for split in facts.splits:
        try:
            lengths = prompt_lengths(facts, split)
        except Exception as error:  # of transformers, or of a chat template
            unknown[split.key] = " ".join(str(error).split())[:200]
            continue
        if not (too_long := sum(length > limit for length in lengths)):
            continue
        of = f"{len(lengths):,} rows" + f" looked at ({split.rows:,} in all)" * (len(lengths) < split.rows)
        cut = (
            f"{split.key}: {too_long:,} of {of} ({too_long / len(lengths):.1%}) have a prompt of more than "
            f"data.max_prompt_length={limit} tokens, up to {max(lengths)}: veRL cuts the beginning off, and fails rows "
            "with images. data.filter_overlong_prompts=True leaves them out; or set "
            f"data.max_prompt_length={max(lengths)}"
        )
        if too_long <= GPGSettings.from_node(facts.get("algorithm.gpg")).max_dropped_share * len(lengths):
            yield Advice(cut)
        else:
            yield f"{cut}; +algorithm.gpg.max_dropped_share allows a larger share"
    if unknown:
        yield Advice(
            f"{' and '.join(unknown)}: prompts longer than data.max_prompt_length were not counted ("
            f"{'; '.join(dict.fromkeys(unknown.values()))}); veRL would cut their beginning off, and "
            "gpg/prompts_truncated counts them in every step"
        )


def prompt_lengths(facts: Facts, split: Split) -> list[int]:
    """Tokens of each prompt of a split that was read; none where a file or a prompt cannot be read."""
    column = facts.get("data.prompt_key")
    prompts = [prompt for file in split.files for prompt in file.columns.get(column, [None])]
    if not split.complete or not prompts or not all(map(is_prompt, prompts)):
        return []
    tokenizer = load_tokenizer(facts.config)
    return [length for file in split.files for length in prompt_tokens(facts, tokenizer, file)]


def load_tokenizer(config: DictConfig):
    """The rollout's tokenizer, without the network; raises OSError where it is not on this machine."""
    from verl.utils.tokenizer import hf_tokenizer

    model = config.actor_rollout_ref.model
    path = model.tokenizer_path or model.path
    try:
        tokenizer = hf_tokenizer(path, trust_remote_code=bool(model.trust_remote_code), local_files_only=True)
    except (OSError, ValueError):
        raise OSError(f"the tokenizer of {path} is not on this machine") from None
    if model.custom_chat_template is not None:
        tokenizer.chat_template = model.custom_chat_template
    return tokenizer


def prompt_tokens(facts: Facts, tokenizer, file: DataFile) -> list[int]:
    """Tokens of each prompt that was read; raises ValueError where an image's are not known."""
    config, kind = facts.config, facts.model.get("model_type")
    prompts = file.columns[config.data.prompt_key]
    images = file.columns.get(config.data.image_key, [[]] * len(prompts))
    texts = tokenizer.apply_chat_template(
        [_with_places(prompt) if seen else prompt for prompt, seen in zip(prompts, images, strict=True)],
        tools=tool_schemas(config),
        add_generation_prompt=True,
        tokenize=False,
        **(config.data.apply_chat_template_kwargs or {}),
    )
    tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    if not any(images):
        return tokens
    from gpg_verl.data.checks import Grid
    from gpg_verl.data.images import processor_size

    if kind not in SEES_BY_GRID:
        raise ValueError(f"how many tokens an image has is not known of {kind}")
    grid = Grid.of(config.actor_rollout_ref.model.tokenizer_path or config.actor_rollout_ref.model.path)
    for row, seen in enumerate(images):
        for size in filter(None, seen):
            wide, high = processor_size(size, grid.max_pixels, grid.min_pixels, grid.side)
            tokens[row] += wide * high // grid.side**2 - 1  # the text has one already
    return tokens


def tool_schemas(config: DictConfig) -> list[dict[str, Any]] | None:
    """What the tool agent writes into each prompt, as far as files say so: a tool whose code alone has its schema is
    not run for it.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop != "tool_agent" or not rollout.multi_turn.tool_config_path:
        return None
    from verl.utils.import_utils import resolve_config_path

    tools = OmegaConf.load(resolve_config_path(rollout.multi_turn.tool_config_path)).tools
    return [OmegaConf.to_container(tool.tool_schema, resolve=True) for tool in tools if tool.get("tool_schema")] or None


def _with_places(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as veRL hands them to the chat template: the image's place, and the texts around it."""

    def pieces(text: str) -> list[dict[str, str]]:
        parts = filter(None, re.split("(<image>)", text))
        return [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]

    return [{**m, "content": pieces(m["content"])} if isinstance(m.get("content"), str) else m for m in prompt]
