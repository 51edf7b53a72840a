"""What the bound of the image check stands on: how far log-probs are apart that two healthy engines give the same
tokens in bf16, and how far they are where the rollout sees other images than the trainer.

    python examples/benchmark/rollout_gap.py --model runs/quickstart/model     # 2 cores: about ten minutes

Noise: the model goes on with a few texts; its tokens are scored in bf16 in padded batches, row by row, packed into one
sequence and with another attention, and in fp32. Images: a tiny Qwen2-VL learns to name what is on its images;
in its course the rollout writes answers to broken ones, and the trainer scores them with the right ones; `stops_from`:
which share of an answer's tokens must be as far apart for the check to stop the run.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

os.environ.setdefault("VERL_PLATFORM", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gpg_verl.training.agreement import Gap
from gpg_verl.training.rollout_check import BF16_GAP

ROWS = 8

BEGINNINGS = (
    "The sea is",
    "To solve x + 3 = 10, first",
    "My favourite fruit is",
    "A train that goes 60 miles an hour",
    "The sky looks blue because",
    "In the year 1905,",
    "She opened the door and",
    "17 + 45 =",
)
COLOURS = {" red": (220, 40, 40), " green": (40, 180, 60), " blue": (40, 60, 220)}
SHAPES = (" circle", " square")


def scored(model, ids, mask, start: int, **inputs) -> torch.Tensor:
    """(rows, tokens from `start` on) log-probs, the softmax in fp32 as in veRL and vLLM."""
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, **inputs).logits[:, start - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, start:, None]).squeeze(-1)


def summary(name: str, apart: list[torch.Tensor], **more) -> None:
    """Prints it. apart: of each row, its tokens' differences. The measure is of ROWS rows each, as in the check."""
    sets = [torch.cat(apart[i : i + ROWS]) for i in range(0, len(apart) - ROWS + 1, ROWS)]
    every = torch.cat(apart).abs()
    gaps = [Gap.of([part]).root_mean_square for part in sets]
    at = {f"p{100 * q:g}": round(every.quantile(q).item(), 4) for q in (0.5, 0.9, 0.98, 0.999)}
    figures = {
        "what": name,
        "tokens": len(every),
        **at,
        "largest": round(every.max().item(), 3),
        "above_1_nat": round((every > 1).float().mean().item(), 5),
        "plain_rms": round(every.square().mean().sqrt().item(), 4),
        "measure": round(float(np.median(gaps)), 4),
        "measure_range": [round(min(gaps), 4), round(max(gaps), 4)],
        **more,
    }
    print(json.dumps(figures), flush=True)


# ---- noise


def noise(folder: Path, rows: int, tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text for text in BEGINNINGS for _ in range(rows // len(BEGINNINGS))]
    each = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    start = each["input_ids"].shape[1]

    def load(dtype, attention="sdpa"):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)

    whole, half = load(torch.float32), load(torch.bfloat16)
    torch.manual_seed(0)
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    ids = whole.generate(**each, max_new_tokens=tokens, **sampling)
    ended = (ids[:, start:] == tokenizer.eos_token_id).int()
    written = ended.cumsum(1) - ended == 0
    mask = torch.cat([each["attention_mask"], written.long()], dim=1)

    def batched(model, size):
        parts = []
        for i in range(0, len(ids), size):
            places = (mask[i : i + size].cumsum(1) - 1).clamp(min=0)
            parts.append(scored(model, ids[i : i + size], mask[i : i + size], start, position_ids=places))
        return torch.cat(parts)

    def packed(model):
        """Eight rows as one sequence, told apart by their positions: sdpa with remove-padding."""
        out = torch.zeros(written.shape)
        for i in range(0, len(ids), ROWS):
            kept = mask[i : i + ROWS].bool()
            flat, places = ids[i : i + ROWS][kept][None], (kept.cumsum(1) - 1)[kept][None]
            values = torch.zeros(kept.shape)
            values[kept] = torch.nn.functional.pad(
                scored(model, flat, None, 1, position_ids=places, use_cache=False)[0], (1, 0)
            )
            out[i : i + ROWS] = values[:, start:]
        return out

    base = batched(half, 16)
    ways = {
        "fp32": lambda: batched(whole, 16),
        "bf16, packed": lambda: packed(half),
        "bf16, eager attention": lambda: batched(load(torch.bfloat16, "eager"), 16),
        "bf16, row by row": lambda: batched(half, 1),
    }
    for name, other in ways.items():
        apart = [row[kept] for row, kept in zip(other() - base, written, strict=True)]
        summary(f"text, bf16 in batches of 16 against {name}", apart)


# ---- images


def image(generator) -> tuple[np.ndarray, list[str]]:
    """Four fields, a shape of some colour in each, and the eight words that name them."""
    picture, words = generator.integers(0, 60, (56, 56, 3)), []
    y, x = np.mgrid[:28, :28] - 13.5
    for row, column in ((0, 0), (0, 28), (28, 0), (28, 28)):
        colour, shape = list(COLOURS)[generator.integers(3)], SHAPES[generator.integers(2)]
        inside = x**2 + y**2 < 120 if shape == " circle" else np.maximum(abs(x), abs(y)) < 12
        picture[row : row + 28, column : column + 28][inside] = COLOURS[colour]
        words += [colour, shape]
    return picture.astype(np.uint8), words


def batch_of(tokenizer, processor, generator, rows: int) -> dict:
    drawn = [image(generator) for _ in range(rows)]
    seen = processor(images=[picture for picture, _ in drawn], return_tensors="pt")
    shown = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    prompt = tokenizer(f"<|im_start|>user {shown}<|im_end|><|im_start|>assistant ", return_tensors="pt")["input_ids"]
    answers = torch.tensor([tokenizer.convert_tokens_to_ids(words) for _, words in drawn])
    ids = torch.cat([prompt.expand(rows, -1), answers], dim=1)
    return {"ids": ids, "start": prompt.shape[1], "pixels": seen["pixel_values"], "grid": seen["image_grid_thw"]}


BROKEN = {
    "normalisation lost": lambda pixels: 1e-3 * pixels - 5e-4,  # vLLM's dummy loading
    "channels turned": lambda pixels: pixels.view(len(pixels), 3, -1).roll(1, dims=1).flatten(1),
    "fields in another order": lambda pixels: pixels.view(-1, 4, 4, pixels.shape[-1]).flip(1).flatten(0, 2),
    "images of other rows": lambda pixels: pixels.roll(16, dims=0),
}


def images(rows: int, stages: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = tiny.make_vision(Path(place) / "model", "qwen2_vl", [*COLOURS, *SHAPES])
        tokenizer, processor = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    generator = np.random.default_rng(0)
    kinds = model.config.image_token_id

    def inputs(batch, pixels=None, ids=None):
        ids = batch["ids"] if ids is None else ids
        return {
            "pixel_values": batch["pixels"] if pixels is None else pixels,
            "image_grid_thw": batch["grid"],
            "mm_token_type_ids": (ids == kinds).int(),
        }

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(max(stages) + 1):
        if step in stages:
            images_at(model, batch_of(tokenizer, processor, generator, rows), inputs, step)
        batch = batch_of(tokenizer, processor, generator, 32)
        ids, start = batch["ids"], batch["start"]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs(batch)).logits[:, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def images_at(model, batch, inputs, step: int) -> None:
    half, start = copy.deepcopy(model).to(torch.bfloat16), batch["start"]

    def write(pixels):
        """Answers of the rollout, which sees these pixels, and its log-probs."""
        ids = batch["ids"][:, :start]
        for _ in range(batch["ids"].shape[1] - start):
            with torch.no_grad():
                logits = half(input_ids=ids, attention_mask=torch.ones_like(ids),
                              **inputs(batch, pixels, ids)).logits[:, -1].float()  # fmt: skip
            logits[:, [half.config.image_token_id, half.config.video_token_id]] = -torch.inf  # as veRL forbids it
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return ids, log_probs(half, ids, pixels)

    def log_probs(scoring, ids, pixels=None):
        return scored(scoring, ids, torch.ones_like(ids), start, **inputs(batch, pixels, ids))

    torch.manual_seed(0)
    ids, rollout = write(batch["pixels"])
    right = (ids[:, start:] == batch["ids"][:, start:]).float().mean().item()
    more = {"step": step, "words_right": round(right, 2)}
    summary("images, healthy: bf16 against fp32", list(log_probs(model, ids) - rollout), **more)
    for name, change in BROKEN.items():
        pixels = change(batch["pixels"])
        ids, rollout = write(pixels)
        apart = log_probs(half, ids) - rollout
        summary(f"images, broken: {name}", list(apart), **more, stops_from=least_share(apart.flatten()))


def least_share(broken: torch.Tensor, tokens: int = 2400) -> float:
    """The least share of an answer's tokens that must be as far apart as these for the check to stop the run."""
    generator = torch.Generator().manual_seed(0)
    for share in (x / 1000 for x in range(1001)):
        apart = torch.zeros(tokens)
        count = round(share * tokens)
        apart[:count] = broken[torch.randint(len(broken), (count,), generator=generator)]
        if Gap.of([apart]).root_mean_square > BF16_GAP:
            return share
    return float("inf")


# ---- weights


def weights(text: Path, stages: list[int]) -> None:
    """A tiny Llama learns to write the questions of a jsonl file; in its course the rollout has other weights."""
    whole = "\n".join(json.loads(line)["question"] for line in text.read_text(encoding="utf-8").splitlines())[:400_000]
    characters = {character: i for i, character in enumerate(sorted(set(whole)))}
    data = torch.tensor([characters[character] for character in whole])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(characters), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model, earlier = LlamaForCausalLM(config), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(max(stages) + 1):
        if step in stages:
            weights_at(model, earlier, data, step)
        for before in (1, 10):
            if step + before in stages:
                earlier[f"{before} steps before"] = copy.deepcopy(model)
        ids = data[torch.randint(len(data) - 97, (16, 1)) + torch.arange(96)]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def weights_at(model, earlier: dict, data: torch.Tensor, step: int) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)

    def write(rollout):
        ids = data[torch.randint(len(data) - 20, (32, 1)) + torch.arange(16)]
        for _ in range(64):
            with torch.no_grad():
                logits = rollout(input_ids=ids).logits[:, -1].float()
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return ids

    def compared(name: str, trainer, rollout) -> None:
        ids = write(rollout)
        mask = torch.ones_like(ids)
        summary(f"weights: {name}", list(scored(trainer, ids, mask, 16) - scored(rollout, ids, mask, 16)), step=step)

    def with_change(change):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                change(name, parameter)
        return other

    def not_sent(name, parameter):
        if name == "model.layers.1.mlp.down_proj.weight":
            parameter.normal_(std=0.02)

    def zero(name, parameter):
        if name == "model.layers.1.self_attn.v_proj.weight":
            parameter.zero_()

    def dummy(name, parameter):
        if parameter.dim() > 1:
            parameter.uniform_(-1e-3, 1e-3)

    def fp8(name, parameter):
        if parameter.dim() > 1 and "layers" in name:
            scale = parameter.abs().amax() / 448
            parameter.copy_((parameter / scale).to(torch.float8_e4m3fn).to(parameter.dtype) * scale)

    def larger(name, parameter):
        if name == "model.norm.weight":
            parameter.mul_(1.1)

    compared("healthy, bf16 against fp32", model, half)
    changes = {"one tensor not sent": not_sent, "one tensor zero": zero, "dummy loading, none sent": dummy,
               "fp8 with a scale a tensor": fp8, "last norm 10 % larger": larger}  # fmt: skip
    for name, other in {**earlier, **{name: with_change(change) for name, change in changes.items()}}.items():
        compared(name, half, copy.deepcopy(other).to(torch.bfloat16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder of a text model; without it, images alone")
    parser.add_argument("--text", type=Path, help="a jsonl file with `question`s, for other weights")
    parser.add_argument("--rows", type=int, default=32, help="answers (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="of a text, at most (default %(default)s)")
    parser.add_argument("--stages", type=int, nargs="+", default=[50, 100, 200, 500], help="of learning, in steps")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of a tiny model
    images(arguments.rows, arguments.stages)
    if arguments.text:
        weights(arguments.text, [50, 200, 800])
    torch.set_num_threads(threads)
    if arguments.model:
        noise(arguments.model, arguments.rows, arguments.tokens)


if __name__ == "__main__":
    main()
