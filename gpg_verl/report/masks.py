"""LISA's mask metrics: SAM makes masks of the boxes in a run's answers, and they are compared with the gold masks.

    python -m gpg_verl.report.masks RUN --data data/vision/box/lisa_val.parquet data/vision/box/lisa_test.parquet

RUN is a folder with veRL's `validation/<step>.jsonl`; the last step's answers are read, and `masks.json` (the means,
for `python -m gpg_verl.report`) and `masks.jsonl` (a line for each answer) are written beside it. The data files are
those that were evaluated: `python -m gpg_verl.data lisa` puts image and gold mask into them.

    IoU of an image = |P ∩ G| / |P ∪ G|, over the pixels that are not marked to be ignored
    gIoU = the mean over the images       cIoU = Σ |P ∩ G| / Σ |P ∪ G|        (as LISA names them; not GIoU of boxes)

An answer without a box has the empty mask: IoU 0.

What the paper's columns (T5) compare, it does not say. They are Visual-RFT's (arXiv 2503.01785), and in the code of its
folder lisa_evaluation "mIoU" is the mean IoU of *boxes* (Qwen2_VL_lisa_infere.py, merge_eval.py), and "gIoU" the mean
IoU of masks after SAM ViT-H (box2mask.py, mask_iou.py). The table fits that: for masks, mIoU and gIoU of one set would
be one number, and they differ in every row. Here the gold mask is LISA's own, all targets without what is to be
ignored; Visual-RFT takes the first polygon. Images and masks have the size that the model saw, not the original's.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.progress import track

from reward_fns import box, extract

IGNORED = 255  # in a gold mask; 1 is the target, 0 the rest
Segment = Callable[[Image.Image, tuple[int, int, int, int]], np.ndarray]  # image, box in its pixels → bool [h, w]


class MasksError(Exception):
    """Something the user can put right; the message says what and how."""


@dataclass(frozen=True)
class Target:
    """An image with its gold mask, both encoded."""

    image: bytes
    mask: bytes


@dataclass(frozen=True)
class Overlap:
    """An answer's mask against the gold one, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        return self.intersection / self.union


def overlap(predicted: np.ndarray, gold: np.ndarray) -> Overlap:
    """Of a bool mask [h, w] with a gold one [h, w] of 0, 1 and IGNORED; the gold one has a target."""
    counted, target = gold != IGNORED, gold == 1
    return Overlap(int((predicted & target).sum()), int(((predicted | target) & counted).sum()))


def box_of(answer: str, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The box of an answer, in pixels of an image of that (width, height); None where the answer has none."""
    found = box.read(extract.tagged_or_whole(answer))
    if found is None:
        return None
    return tuple(int(value / 1000 * length) for value, length in zip(found, size * 2, strict=True))


def read_targets(files: Sequence[Path]) -> dict[tuple[str, str], Target]:
    """(data source, row) → target, of data files with gold masks."""
    targets = {}
    for file in files:
        try:
            table = pq.read_table(file, columns=["data_source", "images", "extra_info"])
        except (OSError, ValueError) as error:
            raise MasksError(f"--data {file}: cannot be read ({error}).") from None
        for row in table.to_pylist():
            mask = row["extra_info"].get("mask")
            if not mask:
                raise MasksError(
                    f"--data {file}, row {row['extra_info'].get('index')}: no gold mask. Make the file with "
                    "`python -m gpg_verl.data lisa`."
                )
            targets[row["data_source"], str(row["extra_info"]["index"])] = Target(row["images"][0]["bytes"], mask)
    return targets


def read_answers(run: Path) -> tuple[int, list[dict]]:
    """(step, answers) of the run's last validation."""
    dumps = {int(file.stem): file for file in run.glob("validation/*.jsonl") if file.stem.isdigit()}
    if not dumps:
        raise MasksError(
            f"{run}: no validation/<step>.jsonl here. Evaluate with trainer.validation_data_dir={run}/validation."
        )
    step = max(dumps)
    answers = [json.loads(line) for line in dumps[step].read_text(encoding="utf-8").splitlines()]
    if not all("row" in answer and "data_source" in answer for answer in answers):
        raise MasksError(
            f"{dumps[step]}: its answers do not name their rows (row, data_source), as reward_fns does. Evaluate again "
            "with reward.custom_reward_function.path=pkg://reward_fns."
        )
    return step, answers


def measure(answers: Sequence[dict], targets: dict[tuple[str, str], Target], segment: Segment) -> Iterator[dict]:
    """A line for each answer; a target that nobody answered counts like an answer without a box."""
    of_target = defaultdict(list)
    for answer in answers:
        of_target[answer["data_source"], answer["row"]].append(answer)
    sources = {source for source, _ in of_target}
    for (source, row), target in targets.items():
        if source not in sources:  # it was not evaluated
            continue
        gold = np.asarray(Image.open(io.BytesIO(target.mask)))
        if not (gold == 1).any():
            raise MasksError(f"{source}, row {row}: its gold mask is empty. Make the data again.")
        image = Image.open(io.BytesIO(target.image)).convert("RGB")
        for answer in of_target.get((source, row)) or [{"uid": None, "output": ""}]:
            pixels = box_of(answer["output"], image.size)
            predicted = np.zeros(gold.shape, bool) if pixels is None else segment(image, pixels)
            found = overlap(predicted, gold)
            yield {
                "data_source": source,
                "row": row,
                "uid": answer["uid"],
                "box": pixels,
                "intersection": found.intersection,
                "union": found.union,
                "mask_iou": found.iou,
            }


def summary(lines: Sequence[dict], step: int) -> dict[str, dict]:
    """Data source → its means, as masks.json has them."""
    found = {}
    for source in dict.fromkeys(line["data_source"] for line in lines):
        of_source = [line for line in lines if line["data_source"] == source]
        of_image = defaultdict(list)
        for line in of_source:
            of_image[line["row"]].append(line["mask_iou"])
        means = [fmean(values) for values in of_image.values()]
        found[source] = {
            "step": step,
            "images": len(means),
            "answers": len(of_source),
            "answers_with_a_box": sum(line["box"] is not None for line in of_source),
            "mask_giou": fmean(means),
            "mask_giou_error": stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
            "mask_ciou": sum(line["intersection"] for line in of_source) / sum(line["union"] for line in of_source),
        }
    return found


def sam(name: str) -> Segment:
    """SAM (Kirillov et al. 2023) from a folder or the hub, prompted with one box, its one mask for it.

    Images are prepared by the processor's PIL version, which is the same on every machine, with torchvision or without.
    """
    try:
        import torch
        from transformers import SamModel, SamProcessor
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
        from transformers.utils import logging
    except ImportError as error:
        raise MasksError(f"{error}. SAM needs more packages: pip install gpg-verl[masks]") from None
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = SamModel.from_pretrained(name).to(device).eval()
        processor = SamProcessor(SamImageProcessorPil.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise MasksError(
            f"--model {name}: expected a folder or hub id of a SAM model; {str(error).splitlines()[0]}"
        ) from None

    def segment(image: Image.Image, pixels: tuple[int, int, int, int]) -> np.ndarray:
        inputs = processor(image, input_boxes=[[list(map(float, pixels))]], return_tensors="pt")
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        with torch.inference_mode():
            # Boxes come in fp64, which the model's own weights are not.
            inputs["input_boxes"] = inputs["input_boxes"].to(model.dtype)
            output = model(**inputs.to(device), multimask_output=False)
        (masks,) = processor.image_processor.post_process_masks(output.pred_masks.cpu(), *sizes)
        return masks[0, 0].numpy()

    return segment


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpg_verl.report.masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with validation/<step>.jsonl")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="the files evaluated")
    parser.add_argument("--model", default="facebook/sam-vit-huge", help="folder or hub id (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        step, answers = read_answers(args.run)
        targets = read_targets(args.data)
        strangers = {(a["data_source"], a["row"]) for a in answers} - set(targets)
        if strangers:
            source, row = min(strangers)
            raise MasksError(
                f"{len(strangers)} of the run's rows are in none of the --data files, the first is {source}, row {row}."
                " Name all files that were evaluated."
            )
        console = Console(stderr=True)
        lines = list(
            track(measure(answers, targets, sam(args.model)), "masks", len(answers), console=console, transient=True)
        )
    except MasksError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sources = summary(lines, step)
    with (args.run / "masks.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (args.run / "masks.json").write_text(json.dumps({"segmenter": args.model, "sources": sources}, indent=1) + "\n")
    for source, of in sources.items():
        print(
            f"{source}: mask gIoU {100 * of['mask_giou']:.1f} %, mask cIoU {100 * of['mask_ciou']:.1f} %, over "
            f"{of['images']} images; {of['answers_with_a_box']} of {of['answers']} answers have a box"
        )
    print(args.run / "masks.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
