"""Prompts that are longer than the rollout takes, counted before Ray starts.

veRL's agent loops cut a text to its last `rollout.prompt_length` tokens without a word, and fail a session with images;
`data.truncation` is read by nobody (veRL 0.9.1). Counted are the rows that were read (data_files.py), rendered and
tokenized as in the agent loop; an image has as many tokens as its grid has cells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpg_verl.launch.data_files import DataFile, Split, is_prompt

VERLS_LOOPS = ("single_turn_agent", "tool_agent")
SEES_BY_GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True)
class PromptLengths:
    """How many prompts of a split are too long.

    limit: tokens that the rollout takes.
    longest: tokens of the longest prompt among the `looked_at` of all `rows`.
    """

    limit: int
    rows: int
    looked_at: int
    too_long: int
    longest: int


def measure(config: DictConfig, model: dict[str, Any], split: Split) -> PromptLengths | str | None:
    """How long a split's prompts are, or in words why that is not known; None where nothing cuts them: veRL's filter
    leaves long ones out, or the user's own data set or agent loop decides. Files that cannot be read count nothing.
    """
    agent_loop = OmegaConf.select(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    own_data = OmegaConf.select(config, "data.custom_cls.path")
    if config.data.filter_overlong_prompts or own_data or agent_loop not in VERLS_LOOPS:
        return None
    prompts = [prompt for file in split.files for prompt in file.columns.get(config.data.prompt_key, [None])]
    if not split.complete or split.unreadable or not prompts or not all(map(is_prompt, prompts)):
        return None
    try:
        tokenizer = load_tokenizer(config)
        lengths = [length for file in split.files for length in prompt_tokens(config, model, tokenizer, file)]
    except Exception as error:  # of transformers, or of a chat template
        return " ".join(str(error).split())[:200]
    limit = config.actor_rollout_ref.rollout.prompt_length
    return PromptLengths(limit, split.rows, len(lengths), sum(length > limit for length in lengths), max(lengths))


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


def prompt_tokens(config: DictConfig, model: dict[str, Any], tokenizer, file: DataFile) -> list[int]:
    """Tokens of each prompt that was read; raises ValueError where an image's are not known."""
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

    if model.get("model_type") not in SEES_BY_GRID:
        raise ValueError(f"how many tokens an image has is not known of {model.get('model_type')}")
    grid = Grid.of(config.actor_rollout_ref.model.tokenizer_path or config.actor_rollout_ref.model.path)
    sizes = [
        [processor_size(size, grid.max_pixels, grid.min_pixels, grid.side) for size in row if size] for row in images
    ]
    # The text has a token for each image already.
    return [
        count + sum(wide * high // grid.side**2 - 1 for wide, high in row)
        for count, row in zip(tokens, sizes, strict=True)
    ]


def tool_schemas(config: DictConfig) -> list[dict[str, Any]] | None:
    """What the tool agent writes into each prompt, as far as files say so: a tool whose code alone has its schema is
    not run for it.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop != "tool_agent" or not rollout.multi_turn.tool_config_path:
        return None
    from verl.utils.import_utils import resolve_config_path

    tools = OmegaConf.load(resolve_config_path(rollout.multi_turn.tool_config_path)).tools
    schemas = [OmegaConf.to_container(tool.tool_schema, resolve=True) for tool in tools if tool.get("tool_schema")]
    return schemas or None


def _with_places(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as veRL hands them to the chat template: the image's place, and the texts around it."""

    def pieces(text: str) -> list[dict[str, str]]:
        parts = filter(None, re.split("(<image>)", text))
        return [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]

    return [{**m, "content": pieces(m["content"])} if isinstance(m.get("content"), str) else m for m in prompt]
