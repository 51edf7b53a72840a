"""Tiny models and tiny raw data for SMOKE=1: every recipe in minutes on a CPU.

    python examples/smoke.py text --out runs/smoke/tiny
    python examples/smoke.py vision --out runs/smoke/vision/tiny

Models (tiny.py): for text a Llama, for each vision task a Qwen2-VL or Qwen2.5-VL, and a SAM. Their words are few, and
some are whole answers, boxed or in tags. So among some responses of 16 tokens a few have the format and fewer are
right: groups are mixed, and there is something to learn from. The images are 84 × 84 pixels of noise with what is asked
about in them: dots to count, a square to find, figures with a name, a side to measure.
Raw data is written as the hub and the data's authors have it; `python -m gpg_verl.data` makes it veRL's, as it does the
real.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiny
from PIL import Image, ImageDraw

ROWS = {"train": 32, "val": 4, "test": 4}


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- text


WORDS = [r" \boxed{1}", r" \boxed{2}", r" \boxed{3}", "\n</think>\n", " so", " then", " is", " x", " =", " 7"]
TRAIN = ("gsm8k", "math", "math_lvl3to5", "open-s1", "open-rs")
TEST = ("gsm8k", "aime24", "math500", "amc23", "minerva", "olympiadbench")


def make_text(folder: Path) -> None:
    tiny.make_words(folder / "model", WORDS)
    (folder / "sources").mkdir()
    for split, sets in (("train", TRAIN), ("test", TEST)):
        for name in sets:
            rows = [problem(name, split, index) for index in range(ROWS[split])]
            write(folder / f"sources/{name}_{split}.jsonl", rows)


def problem(name: str, split: str, index: int) -> dict[str, str]:
    """No question stands in two sets, as in the real ones."""
    gold = str(index % 3 + 1)
    question = f"What is {gold} + 0, asked by {name} {split} for the time number {index}?"
    return {"problem": question, "answer": f"It stays as it is. #### {gold}" if name == "gsm8k" else gold}


# ---- vision


SIDE = 84  # pixels: 9 image tokens
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
BOXES = {"left": (0, 0, 42, 42), "right": (42, 0, 84, 42), "bottom": (21, 42, 63, 84)}  # pixels
CLASSES = {
    "flowers": ["rose", "tulip", "daisy"],
    "pets": ["beagle", "pug", "sphynx"],
    "aircraft": ["A320", "DC-10", "Spitfire"],
    "cars": ["Beetle", "Corvette", "Panda"],
}
SIZES = (1, 2, 3)  # what is counted or measured


def words(answers: list[str], opened: bool = False) -> list[str]:
    """Some fillers and each answer with its tags; `opened`: the prompt ends with the opening think tag.

    The line break is one token in Qwen's tokenizers, and veRL's agent loop asks for that.
    """
    begin = "" if opened else "<think>"
    return ["\n", " so", *(f"{begin} see </think> <answer>{answer}</answer>" for answer in answers)]


def box_text(box: tuple[int, int, int, int]) -> str:
    x1, y1, x2, y2 = (value * 1000 // SIDE for value in box)
    return f"({x1},{y1}),({x2},{y2})"


MODELS = {
    "t4": ("qwen2_vl", words([*map(str, SIZES), "left", "right"], opened=True)),
    "t5": ("qwen2_vl", words([box_text(box) for box in BOXES.values()])),
    **{name: ("qwen2_vl", words(classes)) for name, classes in CLASSES.items()},
    "t7": ("qwen2_5_vl", words([str(size) for size in SIZES])),
}


def make_vision(folder: Path) -> None:
    for name, (kind, vocabulary) in MODELS.items():
        tiny.make_vision(folder / name, kind, vocabulary)
    tiny.make_sam(folder / "sam")
    make_images(folder / "sources")


def make_images(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    sets = [("sat", "train", sat), ("cv_bench", "test", cv_bench), ("geoqa", "train", geoqa), ("geoqa", "test", geoqa)]
    for name in CLASSES:
        sets += [(name, split, classification) for split in ("train", "test")]
    for name, split, rows in sets:
        write(folder / f"{name}_{split}.jsonl", list(rows(folder, name, split)))
    for split in ("train", "val", "test"):
        lisa(folder / "lisa" / split, split)


class Picture:
    """Noise, different for each (set, split, number), to draw on."""

    def __init__(self, name: str, split: str, number: int):
        self.file = f"images/{name}-{split}-{number}.png"
        noise = np.random.default_rng([*f"{name}-{split}".encode(), number]).integers(
            180, 256, (SIDE, SIDE, 3), np.uint8
        )
        self.image = Image.fromarray(noise)
        self.draw = ImageDraw.Draw(self.image)

    def save(self, folder: Path) -> str:
        self.image.save(folder / self.file)
        return self.file


def dots(picture: Picture, count: int) -> None:
    for n in range(count):
        picture.draw.ellipse((6 + 26 * n, 30, 24 + 26 * n, 48), fill=COLOURS["blue"])


def sat(folder: Path, name: str, split: str) -> Iterator[dict]:
    for number in range(ROWS[split]):
        picture, count = Picture(name, split, number), SIZES[number % 3]
        dots(picture, count)
        answers = [str(size) for size in SIZES]
        question = "How many dots are there?"
        yield {"image": picture.save(folder), "question": question, "answers": answers, "correct_answer": str(count)}


def cv_bench(folder: Path, name: str, split: str) -> Iterator[dict]:
    for number in range(ROWS[split]):
        for task in ("Count", "Relation", "Depth", "Distance"):
            picture = Picture(f"{name}-{task}", split, number)
            if task == "Count":
                choices, right = [str(size) for size in SIZES], number % 3
                dots(picture, SIZES[right])
                question = "How many dots are there?"
            else:
                choices, right = ["left", "right"], number % 2
                picture.draw.rectangle(BOXES[choices[right]], fill=COLOURS["red"])
                question = f"Where is the square, asked for {task}?"
            options = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABC", choices, strict=False))
            yield {
                "image": picture.save(folder),
                "task": task,
                "prompt": f"{question} Select from: {options}",
                "choices": choices,
                "answer": f"({'ABC'[right]})",
            }


def geoqa(folder: Path, name: str, split: str) -> Iterator[dict]:
    for number in range(ROWS[split]):
        picture, size = Picture(name, split, number), SIZES[number % 3]
        picture.draw.rectangle((4, 20, 4 + 25 * size, 45), outline=(0, 0, 0))
        question = "The rectangle has height 1. What is its area?"
        yield {"image": picture.save(folder), "problem": question, "solution": f"<answer> {size} </answer>"}


def classification(folder: Path, name: str, split: str) -> Iterator[dict]:
    for number in range(ROWS[split]):
        picture, label = Picture(name, split, number), number % 3
        figure = (picture.draw.ellipse, picture.draw.rectangle, picture.draw.rounded_rectangle)[label]
        figure((12, 12, 72, 72), fill=list(COLOURS.values())[label])
        yield {"image": picture.save(folder), "solution": f"<answer>{CLASSES[name][label]}</answer>"}


def lisa(folder: Path, split: str) -> None:
    """As ReasonSeg: a .jpg and a .json for each image; in training several wordings of its instruction."""
    folder.mkdir(parents=True)
    for number in range(ROWS[split] // (2 if split == "train" else 1)):
        picture, (place, box) = Picture("lisa", split, number), list(BOXES.items())[number % 3]
        x1, y1, x2, y2 = box
        picture.draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOURS["green"])
        picture.image.save(folder / f"{number}.jpg", quality=95)
        wordings = ["What could be grass?", f"The one at the {place}."][: 2 if split == "train" else 1]
        shape = {"label": "target", "shape_type": "polygon", "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
        annotation = {"text": wordings, "is_sentence": True, "shapes": [shape]}
        (folder / f"{number}.json").write_text(json.dumps(annotation), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("text", "vision"))
    parser.add_argument("--out", type=Path, required=True, help="folder to write; if it is there, nothing is done")
    arguments = parser.parse_args()
    if not arguments.out.is_dir():
        with tiny.whole(arguments.out) as work:
            (make_text if arguments.kind == "text" else make_vision)(work)


if __name__ == "__main__":
    main()
