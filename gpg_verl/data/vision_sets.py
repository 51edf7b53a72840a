"""The vision sets: one entry each, and the readers of their rows and of their own file layouts.

Every row has one image. Field names and layouts are those of the public releases: the hub's parquet, VisualThinker's
json for SAT, R1-V's jsonl for the GEOQA test, Visual-RFT's .pth lists for the classification validation sets, and
ReasonSeg's folders for LISA. What no public source states is not checked, and the entry says so.
"""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path

import numpy
from PIL import Image, ImageDraw

from gpg_verl.data import DataError, images
from gpg_verl.data.dataset import DataSet, Question, Row, Split, get_field, get_text
from reward_fns import extract, sources

PLACEHOLDER = re.compile(r"<(?:image|video|audio)>\s*")  # veRL's marks; the template sets the only one of a prompt
IMAGE_FIELDS = ("image", "images", "image_bytes", "image_path", "filename")


def one_image(row: Row) -> list[Row]:
    """SAT: questions about two images are left out, as in VisualThinker's preparation."""
    images = get_field(row, *IMAGE_FIELDS)
    return [] if isinstance(images, list) and len(images) != 1 else [row]


def read_sat(row: Row) -> Question:
    """VisualThinker's json (`messages`, `images`), or a row of the hub: the options in an order fixed by the row.

    VisualThinker shuffles the hub's options without a seed; here their order is the same in every run.
    """
    if "messages" in row:
        user, assistant = (str(message["content"]) for message in row["messages"][:2])
        text = _clean(user).removeprefix("Answer in natural language.").strip()
        return Question(text, _gold(assistant), image=_image(row))
    text = _clean(get_text(row, "question"))
    options = [str(option).strip() for option in get_field(row, "answers")]
    random.Random(json.dumps([text, options])).shuffle(options)
    return Question(
        f"{text}\nOptions: {', '.join(options)}", _gold(get_field(row, "correct_answer")), image=_image(row)
    )


def read_cv_bench(row: Row) -> Question:
    """`prompt` is the question with its lettered options; the letter and the option's text are both right."""
    letter, options = str(get_field(row, "answer")).strip(), list(get_field(row, "choices"))
    match = re.fullmatch(r"\(?([A-H])\)?", letter)
    number = "ABCDEFGH".index(match[1]) if match else len(options)
    if number >= len(options):
        raise DataError(f"the answer {letter!r} is none of the {len(options)} choices {options}")
    task = get_field(row, "task")
    if task not in sources.CV_BENCH_TASKS:
        raise DataError(f"the task is {task!r}, known are {', '.join(sources.CV_BENCH_TASKS)}")
    golds = [f"({match[1]})", *_gold(options[number])]
    return Question(_clean(get_text(row, "prompt")), golds, part=task, image=_image(row))


def read_geoqa(row: Row) -> Question:
    """The hub's training rows (`problem`, `solution` in answer tags), or R1-V's test (`question`, `ground_truth`)."""
    text = _clean(get_text(row, "problem", "question"))
    return Question(text, _gold(get_field(row, "solution", "ground_truth", "answer")), image=_image(row))


def read_class(row: Row, *, question: str) -> Question:
    """A row of a classification set. The question is ours, in training and evaluation alike.

    The hub's `problem` is a whole prompt, with tags to write, and the validation sets have none at all. GPG's own
    evaluation asks without a list of the class names, so there is none here.
    """
    return Question(question, _gold(get_field(row, "solution")), image=_image(row))


def read_lisa(row: Row) -> Question:
    """ReasonSeg: the gold is the box around the first target, in thousandths of the image, rounded down.

    As in Visual-RFT's preparation, except that it takes the first shape whatever its label: `ignore` marks what
    evaluation looks away from, `flag` is an annotation that LISA's own code drops. A copy on the hub has one `mask`
    for all targets, and its box is around that mask.
    """
    texts = get_field(row, "text")
    if not (text := _clean(str(texts[0] if isinstance(texts, list) and texts else texts or ""))):
        raise DataError("the instruction (text) is empty")
    size = row.get("width", row.get("img_width")), row.get("height", row.get("img_height"))
    if None in size:  # the image cannot be read, and is reported
        return Question(text, [], image=_image(row))
    if "shapes" in row:
        mask, box = _from_shapes(row["shapes"], size)
    else:
        mask = Image.fromarray(numpy.asarray(get_field(row, "mask"), dtype=numpy.uint8))
        box = mask.getbbox()
    golds = [] if box is None else [box_text(box, size)]
    return Question(text, golds, image=_image(row), mask=mask)


def box_text(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """`(x1,y1),(x2,y2)` in thousandths of the image, from a box in its pixels; what lies outside is cut off."""
    x1, y1, x2, y2 = (
        int(min(max(value, 0), length) / length * 1000) for value, length in zip(box, size + size, strict=True)
    )
    return f"({x1},{y1}),({x2},{y2})"


def one_row_per_instruction(row: Row) -> list[Row]:
    """LISA's training images have up to five wordings of the instruction; each is a question, as in Visual-RFT."""
    texts = get_field(row, "text")
    return [row | {"text": text} for text in texts] if isinstance(texts, list) and texts else [row]


def _from_shapes(shapes: list[dict], size: tuple[int, int]):
    """(mask, box of the first target or None) of ReasonSeg's polygons; small ones lie over large ones, as in LISA."""
    layers, box = [], None
    for shape in shapes:
        label = str(shape["label"]).lower()
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if label == "flag" or len(points) < 2:
            continue
        ignored = "ignore" in label
        if box is None and not ignored:
            xs, ys = zip(*points, strict=True)
            box = (min(xs), min(ys), max(xs), max(ys))
        layers.append((_area(points), points, 255 if ignored else 1))
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for _, points, value in sorted(layers, key=lambda layer: -layer[0]):
        draw.polygon([(int(x), int(y)) for x, y in points], fill=value, outline=value)
    return mask, box


def _area(points: list[tuple[float, float]]) -> float:
    turned = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in turned)) / 2


def _gold(value: object) -> list[str]:
    text = extract.tagged_or_whole("" if value is None else str(value))
    return [text] if text else []


def _image(row: Row) -> object:
    """Not yet read: the first of a list, in SAT's parquet and in veRL's format."""
    value = get_field(row, *IMAGE_FIELDS)
    return next(iter(value), None) if isinstance(value, list) else value


def _clean(text: str) -> str:
    return PLACEHOLDER.sub("", text).strip()


# --- layouts of their own --------------------------------------------------------------------------


def reason_seg(path: Path, split: str) -> list[Row] | None:
    """A ReasonSeg folder: NAME.jpg beside NAME.json, under train, val and test or all in one folder."""
    folder = path / split if (path / split).is_dir() else path
    rows = []
    for file in sorted(folder.glob("*.json")):
        data = file.read_bytes()
        try:
            try:
                row = json.loads(data)
            except UnicodeDecodeError:
                row = json.loads(data.decode("cp1252"))  # some of LISA's files
        except ValueError as error:
            raise DataError(f"{file}: not JSON ({error}). Download it again.") from None
        image = file.with_suffix(".jpg")
        width, height = images.size_as_shown(image) or (None, None)
        rows.append(row | {"image": image.resolve(), "width": width, "height": height})
    return rows or None


def validation_list(path: Path, split: str) -> list[Row] | None:
    """Visual-RFT's validation list: NAME.pth, a list of {image path: {label: number}}, and NAME.txt, a class a line."""
    if path.suffix != ".pth":
        return None
    names_file = path.with_suffix(".txt")
    try:
        names = [line.strip() for line in names_file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(
            f"{names_file}: {error.strerror}. It holds the class names, one a line, and belongs beside {path.name}."
        ) from None
    import torch  # seconds to import

    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)  # no code of the file's own is run
    except Exception as error:  # whatever the unpickler finds
        raise DataError(
            f"{path}: cannot be read ({error}). Expected a list of {{image path: {{label: number}}}}."
        ) from None
    labels = [(image, int(known["label"])) for entry in entries for image, known in entry.items()]
    if wrong := next(((image, label) for image, label in labels if not 0 <= label < len(names)), None):
        raise DataError(f"{path}: {wrong[0]} has the label {wrong[1]}, and the .txt beside it {len(names)} names.")
    return [{"image": image, "solution": names[label]} for image, label in labels]


# --- the table -------------------------------------------------------------------------------------


def _classes(name: str, what: str, classes: str, data_source: str, train: int, test: int, listed: str) -> DataSet:
    """One of Visual-RFT's four sets; row counts as on the hub's page and in Visual-RFT's README."""
    where = (
        f"Its list is classification/val_data/{listed}.pth, with {listed}.txt beside it, in "
        "github.com/Liuziyu77/Visual-RFT; the images are the original data set's. Give --source "
        f"{listed}.pth --images FOLDER_OF_THE_IMAGES."
    )
    splits = {"train": Split("train", (train,)), "test": Split("validation", (test,), not_on_hub=where)}
    return DataSet(
        name, f"{classes} classes; training is 4-shot (T6)", data_source, data_source, "CC BY-NC 4.0 (README)", splits,
        partial(read_class, question=f"Which {what} does the image show?"),
        template="class", images=True, layout=validation_list,
    )  # fmt: skip


_ENTRIES = (
    DataSet(
        "sat", "spatial questions with options, synthetic images (T4)", "array/SAT", sources.SAT, "MIT",
        # VisualThinker takes the first 15,000 rows less those with two images. How many stay is not published.
        {"train": Split("train", (), file="SAT_train.parquet", first=15_000, expand=one_image)},
        read_sat, template="choice", images=True,
    ),
    DataSet(
        "cv_bench", "counting, relation, depth and distance, with options (T4)", "nyu-visionx/CV-Bench",
        sources.CV_BENCH, "Apache-2.0",
        {"test": Split("test", (2_638,), parts={"Count": 788, "Relation": 650, "Depth": 600, "Distance": 600})},
        read_cv_bench, template="choice", images=True,
    ),
    DataSet(
        "lisa", "ReasonSeg: instructions that name a region (T5); rows are images", "dvlab-research/LISA",
        sources.LISA, "not stated",
        {
            "train": Split(
                "train", (239,), expand=one_row_per_instruction,
                not_on_hub="Its folder ReasonSeg is linked in the README of github.com/dvlab-research/LISA. Give "
                "--source ReasonSeg.",
            ),
            # Copies by others; what their columns are is known from copies of these.
            "val": Split("test", (200,), hub_id="Ricky06662/ReasonSeg_val", data_source=sources.LISA_VAL),
            "test": Split("test", (779,), hub_id="Ricky06662/ReasonSeg_test", data_source=sources.LISA_TEST),
        },
        read_lisa, template="box", images=True, layout=reason_seg,
    ),
    _classes("flowers", "species of flower", "Oxford Flowers, 102", sources.FLOWERS, 408, 2_463, "oxford_flowers"),
    _classes("pets", "breed of pet", "Oxford-IIIT Pets, 37", sources.PETS, 148, 3_669, "pets"),
    _classes("aircraft", "model of aircraft", "FGVC-Aircraft, 100", sources.AIRCRAFT, 400, 3_333, "fgvc_aircraft"),
    _classes("cars", "model of car", "Stanford Cars, 196", sources.CARS, 784, 8_041, "stanford_cars"),
    DataSet(
        "geoqa", "geometry with a figure (T7)", "leonardPKU/GEOQA_R1V_Train_8K", sources.GEOQA_TRAIN, "not stated",
        {
            "train": Split("train", (8_031,)),
            # R1-V's README calls it a set of 735, its file numbers the images from 0 to 753: not settled.
            "test": Split(
                "test", (), hub_id="Luckyjhg/Geo170K", data_source=sources.GEOQA_TEST,
                not_on_hub="Its questions are src/eval/prompts/geoqa_test_prompts.jsonl in github.com/Deep-Agent/R1-V, "
                "its images images.zip of huggingface.co/datasets/Luckyjhg/Geo170K. Give --source "
                "geoqa_test_prompts.jsonl --images FOLDER, the folder that holds Geo170K/images/test.",
            ),
        },
        read_geoqa, template="number", images=True,
    ),
)  # fmt: skip

VISION_SETS = {entry.name: entry for entry in _ENTRIES}
