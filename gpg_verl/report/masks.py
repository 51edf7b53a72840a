"""LISA's mask metrics: SAM makes masks of the boxes in a run's answers, and they are compared with the gold masks.

    python -m gpg_verl.report.masks RUN --data data/vision/box/lisa_val.parquet data/vision/box/lisa_test.parquet

RUN is a folder with veRL's `validation/<step>.jsonl`; the last step's answers are read, and `masks.json` (the means,
for `python -m gpg_verl.report`) and `masks.jsonl` (a line for each answer) are written beside it. The data files are
those that were evaluated: `python -m gpg_verl.data lisa` puts image and gold mask into them.

    IoU of an image = |P ∩ G| / |P ∪ G|, over the pixels that are not marked to be ignored; without a box P is empty
    gIoU = the mean over the images       cIoU = Σ |P ∩ G| / Σ |P ∪ G|        (as LISA names them; not GIoU of boxes)

The paper does not say what T5's columns compare. They are Visual-RFT's (arXiv 2503.01785), in whose code "mIoU" is the
mean IoU of *boxes* and "gIoU" that of masks after SAM ViT-H (lisa_evaluation/Qwen2_VL_lisa_infere.py, box2mask.py). The
numbers fit: for masks both would be one number, and they differ in every row. Here the gold mask is LISA's own, all
targets without what is to be ignored; Visual-RFT takes the first polygon. Images and masks are as the model saw them.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.progress import track

from gpg_verl.report import ReportError
from reward_fns import box, extract

IGNORED = 255  # in a gold mask; 1 is the target, 0 the rest
Segment = Callable[[Image.Image, tuple[int, int, int, int]], np.ndarray]  # image, box in its pixels → bool [h, w]
KEY = ["data_source", "row"]  # of an answer and of its target


def overlap(predicted: np.ndarray, gold: np.ndarray) -> tuple[int, int]:
    """(intersection, union) in pixels of a bool mask [h, w] with a gold one [h, w] of 0, 1 and IGNORED."""
    counted, target = gold != IGNORED, gold == 1
    return int((predicted & target).sum()), int(((predicted | target) & counted).sum())


def box_of(answer: str, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The box of an answer, in pixels of an image of that (width, height); None where the answer has none."""
    found = box.read(extract.tagged_or_whole(answer))
    return found and tuple(int(value / 1000 * length) for value, length in zip(found, size * 2, strict=True))


def read_targets(files: Sequence[Path]) -> pd.DataFrame:
    """(rows,) of the data files: data_source, row, image and gold mask, both encoded."""
    found = []
    for file in files:
        for row in pq.read_table(file, columns=["data_source", "images", "extra_info"]).to_pylist():
            mask, index = row["extra_info"].get("mask"), row["extra_info"].get("index")
            if not mask:
                raise ReportError(
                    f"--data {file}, row {index}: no gold mask. Make the file with `python -m gpg_verl.data lisa`."
                )
            found.append((row["data_source"], str(index), row["images"][0]["bytes"], mask))
    return pd.DataFrame(found, columns=[*KEY, "image", "mask"])


def read_answers(run: Path) -> tuple[int, pd.DataFrame]:
    """(step, answers) of the run's last validation."""
    dumps = {int(file.stem): file for file in run.glob("validation/*.jsonl") if file.stem.isdigit()}
    if not dumps:
        raise ReportError(
            f"{run}: no validation/<step>.jsonl here. Evaluate with trainer.validation_data_dir={run}/validation."
        )
    step = max(dumps)
    answers = pd.DataFrame(map(json.loads, dumps[step].read_text(encoding="utf-8").splitlines()))
    if not {*KEY} <= {*answers} or answers[KEY].isna().any(axis=None):
        raise ReportError(
            f"{dumps[step]}: its answers do not name their rows (row, data_source), as reward_fns does. Evaluate again "
            "with reward.custom_reward_function.path=pkg://reward_fns."
        )
    return step, answers[[*KEY, "uid", "output"]]


def measure(answers: pd.DataFrame, targets: pd.DataFrame, segment: Segment) -> Iterator[dict]:
    """A line for each answer; a target that nobody answered counts like an answer without a box."""
    evaluated = targets[targets.data_source.isin(answers.data_source)]
    for line in evaluated.merge(answers, how="left", on=KEY).itertuples():
        gold = np.asarray(Image.open(io.BytesIO(line.mask)))
        if not (gold == 1).any():
            raise ReportError(f"{line.data_source}, row {line.row}: its gold mask is empty. Make the data again.")
        picture = Image.open(io.BytesIO(line.image)).convert("RGB")
        answered = isinstance(line.output, str)
        pixels = box_of(line.output, picture.size) if answered else None
        predicted = np.zeros(gold.shape, bool) if pixels is None else segment(picture, pixels)
        intersection, union = overlap(predicted, gold)
        answer = {"data_source": line.data_source, "row": line.row, "uid": line.uid if answered else None}
        areas = {"intersection": intersection, "union": union, "mask_iou": intersection / union}
        yield answer | {"box": pixels} | areas


def summary(lines: Sequence[dict], step: int) -> dict[str, dict]:
    """Data source → its means, as masks.json has them. Several answers to an image are one image."""
    found = {}
    for source, own in pd.DataFrame(lines).groupby("data_source", sort=False):
        means = own.groupby("row").mask_iou.mean()
        found[source] = {
            "step": step,
            "images": len(means),
            "answers": len(own),
            "answers_with_a_box": int(own.box.notna().sum()),
            "mask_giou": float(means.mean()),
            "mask_giou_error": float(means.sem()) if len(means) > 1 else None,
            "mask_ciou": float(own.intersection.sum() / own.union.sum()),
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
        raise ReportError(f"{error}. SAM needs more packages: pip install gpg-verl[masks]") from None
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SamModel.from_pretrained(name).to(device).eval()
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(name))

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


def write_masks(run: Path, files: Sequence[Path], model: str) -> None:
    """Measures the run's answers, writes masks.jsonl and masks.json, and prints the means."""
    step, answers = read_answers(run)
    targets = read_targets(files)
    if strangers := {*answers[KEY].itertuples(index=False)} - {*targets[KEY].itertuples(index=False)}:
        source, row = min(strangers)
        raise ReportError(
            f"{len(strangers)} of the run's rows are in none of the --data files, the first is {source}, row {row}. "
            "Name all files that were evaluated."
        )
    masks = measure(answers, targets, sam(model))
    lines = list(track(masks, "masks", len(answers), console=Console(stderr=True), transient=True))
    sources = summary(lines, step)
    (run / "masks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "masks.json").write_text(json.dumps({"segmenter": model, "sources": sources}, indent=1) + "\n")
    for source, of in sources.items():
        print(
            f"{source}: mask gIoU {100 * of['mask_giou']:.1f} %, mask cIoU {100 * of['mask_ciou']:.1f} %, over "
            f"{of['images']} images; {of['answers_with_a_box']} of {of['answers']} answers have a box"
        )
    print(run / "masks.json")


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m gpg_verl.report.masks", description=__doc__, formatter_class=raw)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with validation/<step>.jsonl")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="the files evaluated")
    parser.add_argument("--model", default="facebook/sam-vit-huge", help="folder or hub id (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        write_masks(args.run, args.data, args.model)
    except (ReportError, OSError, ValueError) as error:  # the latter: no parquet file, no model
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
