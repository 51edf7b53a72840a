"""What the rows of a batch show beside their tokens: images and videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict

KINDS = (
    ("pixel_values", "image_grid_thw", "image_token_id"),
    ("pixel_values_videos", "video_grid_thw", "video_token_id"),
)
SAMPLE = 64  # of an item's values, by which items are told apart before they are compared

# Of the models with images, those for which it is known which tokens are whose.
IMAGE_MODELS = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Images:
    """What rows show, images and videos, as items.

    item: (tokens,) number of the item that the token is a part of, 0 for text; items that look alike have one.
    first: (tokens,) bool, its item's first token.
    kinds: (tokens,) the item's place in KINDS.
    shown: by number, an item's pixels and grid.
    """

    item: np.ndarray
    first: np.ndarray
    kinds: np.ndarray
    shown: dict[int, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, data: TensorDict, config) -> Images | None:
        """None where no row has any. For rows that `unsupported_inputs` lets pass."""
        rows = shown_by(data)
        if not any(rows):
            return None
        ids, offsets = data["input_ids"].values().cpu().numpy(), data["input_ids"].offsets().tolist()
        item, kinds = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        first, shown, alike = np.zeros(len(ids), dtype=bool), {}, {}
        merged = config.vision_config.spatial_merge_size**2
        for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
            for kind, (pixels, grid, token) in enumerate(KINDS):
                if pixels not in row:
                    continue
                sizes = row[grid].prod(-1).tolist()
                places = start + np.flatnonzero(ids[start:end] == getattr(config, token))
                parts, done = row[pixels].split(sizes), 0
                for part, shape, size in zip(parts, row[grid], sizes, strict=True):
                    number = _number_of(part, (kind, *shape.tolist()), alike)
                    shown.setdefault(number, (part, shape))
                    own, done = places[done : done + size // merged], done + size // merged
                    item[own], kinds[own], first[own[0]] = number, kind, True
        return cls(item, first, kinds, shown)

    def along(self, tokens: np.ndarray) -> dict[str, list[torch.Tensor]]:
        """The model's inputs, part by part, for the items that begin among `tokens`, in their order."""
        inputs: dict[str, list[torch.Tensor]] = {}
        begins = tokens[self.first[tokens]]
        for kind, (pixels, grid, _) in enumerate(KINDS):
            items = [self.shown[number] for number in self.item[begins[self.kinds[begins] == kind]].tolist()]
            if items:
                inputs[pixels] = [part for part, _ in items]
                inputs[grid] = [shape.unsqueeze(0) for _, shape in items]
        return inputs


def shown_by(data: TensorDict) -> list[dict]:
    """What the rows bring beside their tokens; [] where nothing is said of any."""
    rows = data.get("multi_modal_inputs", None)
    rows = [] if rows is None else [getattr(row, "data", row) or {} for row in rows]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def unsupported_inputs(data: TensorDict, config) -> str | None:
    """Why these rows must be computed one by one; None where trees are known to be exact for what they show."""
    shown = {name for row in shown_by(data) for name in row}
    known = {name for pixels, grid, _ in KINDS for name in (pixels, grid)}
    # for position ids and veRL's estimate of FLOPs
    if others := shown - known - {"second_per_grid_ts", "images_seqlens"}:
        return f"rows bring {', '.join(sorted(others))}, and which tokens that is for is not known"
    if shown and not hasattr(config, "vision_config"):
        return "rows bring images, and the model's config says nothing of them"
    return None


def unmatched_row(data: TensorDict, config, tokenizer) -> str | None:
    """A row whose images are not for as many tokens as it has of them, with the end of its prompt. None where all
    match, and for models for which this is not known.
    """
    if config.model_type not in IMAGE_MODELS:
        return None
    rows, merged = shown_by(data), config.vision_config.spatial_merge_size**2
    for i, ids in enumerate(data["input_ids"].unbind()):
        for pixels, grid, name in KINDS:
            grids, token = (rows[i] if rows else {}).get(grid), getattr(config, name)
            expected = 0 if grids is None else int(grids.prod(-1).sum()) // merged
            tokens = int((ids == token).sum())
            if tokens != expected:
                end = data["prompts"][i][-40:].tolist()
                end = tokenizer.decode(end) if tokenizer is not None else end
                return f"{tokens} tokens {token} ({name}), and {pixels} for {expected}; its prompt ends in {end!r}"
    return None


def _number_of(pixels: torch.Tensor, shape: tuple, alike: dict) -> int:
    """The number of an item, from 1: that of the one before that looks just like it. A sample tells most apart."""
    sample = pixels.flatten()[:: max(1, pixels.numel() // SAMPLE)]
    candidates = alike.setdefault((*shape, *sample.tolist()), [])
    for other, number in candidates:
        if other.data_ptr() == pixels.data_ptr() or torch.equal(other, pixels):
            return number
    number = alike["count"] = alike.get("count", 0) + 1
    candidates.append((pixels, number))
    return number
