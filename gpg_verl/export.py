"""`python -m gpg_verl export`: a veRL checkpoint (FSDP, one rank or several, with or without LoRA) as a model folder.

veRL's own merger (`verl.model_merger`, veRL 0.9.1) rounds to bf16, and writes an adapter beside an untrained base,
which whoever loads the folder then gets. Here the adapter is merged in fp32, weights keep the precision that was
trained, and the folder is loaded again and compared with what was trained before the command says done. All of it is
computed on the CPU, with twice the model in fp32 in memory.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

EXAMPLE = "python -m gpg_verl export runs/my-run/checkpoints/global_step_100 my-model"
TOKENS = 64  # of a random text, whose log-probs are compared
TOLERANCE = 1e-3  # nats that a log-prob of the folder and of what was trained may differ by: merging rounds in fp32


class ExportError(Exception):
    """Something the user can put right; the message names where, what was seen and how to fix it."""


def main(checkpoint: str, folder: str, base: str | None = None) -> int:
    try:
        for line in export(Path(checkpoint).expanduser(), Path(folder).expanduser(), base):
            print(f"gpg_verl: {line}", flush=True)
    except ExportError as error:
        print(f"gpg_verl: {error}")
        return 1
    return 0


def export(checkpoint: Path, folder: Path, base: str | None = None):
    """Writes the model of a checkpoint into `folder`, whole or not at all; yields what to tell the user.

    Args:
        checkpoint: `global_step_N`, or `actor` in it.
        folder: the new folder, for `from_pretrained`; must not exist, or be empty.
        base: the model that an adapter was trained on, where the checkpoint has the adapter alone
            (veRL's `checkpoint.save_lora_only`), which does not know it.

    Raises:
        ExportError: no such checkpoint, another engine's, shards that do not fit, or a folder that differs.
    """
    actor = actor_of(checkpoint)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder}: is there already; name a new folder")
    state = full_state(actor)
    adapter = {name: value for name, value in state.items() if "lora_" in name}
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in state.values() if v.is_floating_point()))
    if adapter:  # in bf16 the sum of weights and adapter would lose more than the adapter learnt
        dtype = torch.float32
    yield f"{actor}: {len(state)} tensors, {dtype}" + (f", {len(adapter)} of a LoRA adapter" if adapter else "")

    model = build(actor, state, adapter, base)
    text = torch.randint(model.config.get_text_config().vocab_size, (1, TOKENS), generator=torch.manual_seed(0))
    trained = log_probs(model, text)
    if adapter:
        model = model.merge_and_unload(safe_merge=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary) / "model"
        # Tokenizer, processor and what else veRL keeps beside the shards; the model's own files are written over it.
        shutil.copytree(actor / "huggingface", work)
        model.to(dtype).save_pretrained(work)
        written = type(model).from_pretrained(work, dtype=torch.float32)
        apart = (log_probs(written, text) - trained).abs().max().item()
        if not apart <= TOLERANCE:
            raise ExportError(
                f"{actor}: log-probs of the written model differ by up to {apart:.2g} nats from those of the "
                f"checkpoint; nothing was left in {folder}. Please report it, with the model's architecture "
                f"({type(model).__name__})"
            )
        if folder.exists():
            folder.rmdir()
        os.replace(work, folder)
    yield f"{folder}: written, and loaded again; log-probs of {TOKENS} random tokens differ by at most {apart:.1e} nats"


def actor_of(checkpoint: Path) -> Path:
    """The folder with the actor's shards."""
    for folder in (checkpoint, checkpoint / "actor"):
        if (folder / "fsdp_config.json").is_file():
            return folder
    steps = sorted(checkpoint.glob("global_step_*"), key=lambda path: int(path.name.removeprefix("global_step_")))
    hint = f"; in it is {steps[-1].name}: name that" if steps else f", for example: {EXAMPLE}"
    raise ExportError(
        f"{checkpoint}: expected a veRL checkpoint of FSDP, global_step_N with actor/fsdp_config.json{hint}"
    )


def full_state(actor: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of all ranks' shards, in the precision that they were saved in."""
    from torch.distributed.tensor import DTensor

    ranks = json.loads((actor / "fsdp_config.json").read_text())["world_size"]
    files = [actor / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ExportError(f"{actor}: {', '.join(missing)} missing; every rank's file must be in this folder")
    try:
        shards = [torch.load(file, map_location="cpu", mmap=True, weights_only=False) for file in files]
    except Exception as error:  # whatever the unpickler finds in a file that was cut
        raise ExportError(f"{actor}: a shard cannot be read ({error}). Name an older checkpoint") from None
    state = {}
    for name, first in shards[0].items():
        if not isinstance(first, DTensor):  # a buffer, or all that there is with one rank
            state[name] = first
            continue
        *_, (placement, size) = zip(first.placements, first.device_mesh.shape, strict=True)
        # With several groups of ranks (HSDP) each has all of it: the first group's parts make the whole.
        parts = [shard[name].to_local() for shard in shards[:size]]
        state[name] = torch.cat(parts, dim=placement.dim) if placement.is_shard() else parts[0]
        if state[name].shape != first.shape:
            raise ExportError(
                f"{actor}: {name} is {list(state[name].shape)}, not {list(first.shape)}; only FSDP is known"
            )
    return state


def build(actor: Path, state: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor], base: str | None) -> Any:
    """The model as it was trained, in fp32: with its adapter, if it has one, not yet merged."""
    from transformers import AutoConfig
    from verl.utils.model import get_hf_auto_model_class

    config = AutoConfig.from_pretrained(actor / "huggingface")
    kind = get_hf_auto_model_class(config)
    own = {plain_name(name): value.float() for name, value in state.items() if name not in adapter}
    if own:
        with torch.device("meta"):
            kind = type(kind.from_config(config))
        model, found = kind.from_pretrained(
            None, config=config, state_dict=own, dtype=torch.float32, output_loading_info=True
        )
        if lost := [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]:
            raise ExportError(f"{actor}: tensors and model do not fit: {', '.join(map(str, list(lost)[:5]))}")
    else:
        try:
            model = kind.from_pretrained(base or "", dtype=torch.float32)
        except (OSError, ValueError) as error:
            why = f"cannot be loaded from {base} ({str(error).splitlines()[0]})" if base else "is not known"
            raise ExportError(
                f"{actor}: it holds the adapter alone, and the model under it {why}. Name it: --base MODEL"
            ) from None
    return with_adapter(actor, model, adapter) if adapter else model


def plain_name(name: str) -> str:
    """A tensor's name in the base model, from that under peft's wrappers."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def with_adapter(actor: Path, model: Any, adapter: dict[str, torch.Tensor]) -> Any:
    import peft

    meta = actor / "lora_train_meta.json"
    try:
        known = json.loads(meta.read_text())
        rank, alpha = known["r"], known["lora_alpha"]
    except (OSError, ValueError, KeyError):
        raise ExportError(f"{meta}: expected r and lora_alpha of the adapter, which veRL writes beside it") from None
    wrapped = sorted({plain_name(name).partition(".lora_")[0] for name in adapter})
    model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=wrapped))
    lost = model.load_state_dict({name: value.float() for name, value in adapter.items()}, strict=False)
    missing = [name for name in lost.missing_keys if "lora_" in name]
    if lost.unexpected_keys or missing:
        raise ExportError(f"{actor}: adapter and model do not fit: {', '.join([*lost.unexpected_keys, *missing][:5])}")
    return model


@torch.no_grad()
def log_probs(model: Any, text: torch.Tensor) -> torch.Tensor:
    """(tokens − 1,) log-probs of a text's tokens, in fp32, without dropout."""
    logits = model.eval()(input_ids=text).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, text[0, 1:, None]).squeeze(-1)
