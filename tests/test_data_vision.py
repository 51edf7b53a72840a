"""Preparation of the vision sets: generated images in each set's real layout in, veRL's multimodal parquet out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from preparing import make_model, prepare, run, to_json, verl_data
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gpg_verl.data import images
from gpg_verl.data.__main__ import SETS, main
from gpg_verl.data.templates import PLAIN, TEMPLATES
from gpg_verl.data.vision_sets import VISION_SETS, box_text
from reward_fns import compute_score, format

COLOURS = ("red", "green", "blue", "orange", "purple", "black")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def picture(number: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A drawing that differs from that of any other number."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 40, 40), fill=COLOURS[number % len(COLOURS)])
    for i in range(10):
        draw.point((i, size[1] - 1), "black" if number >> i & 1 else "white")
    return image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def load(data: object, max_pixels: int = images.MAX_PIXELS) -> images.Picture:
    return images.load(data, None, max_pixels)


def save(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def hub_parquet(file: Path, rows: list[dict], column: str = "image") -> Path:
    """As `datasets` uploads it: images are {bytes, path}, and the file's metadata says that they are images."""
    feature = datasets.List(datasets.Image()) if isinstance(rows[0][column], list) else datasets.Image()
    table = datasets.Dataset.from_list(rows).cast_column(column, feature)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(file)
    return file


def geoqa_row(image: str, problem: str = "1 = ()", **other) -> dict:
    return {"image": image, "problem": problem, "solution": "1", **other}


# --- the layouts ----------------------------------------------------------------------------------


def sat_json(root: Path) -> Path:
    text = "<image> Answer in natural language. {} Choose between the following options: left or right"
    rows = []
    for question, gold, number in (("Where is it?", "left", 0), ("And that?", "right", 2)):
        file = save(picture(number // 2), root / "SAT_images_train" / f"{number}_0.png")
        messages = [{"role": "user", "content": text.format(question)}, {"role": "assistant", "content": gold}]
        rows.append({"messages": messages, "images": [str(file.relative_to(root))]})
    return to_json(root / "SAT_train_15000.json", rows)


def sat_rows() -> list[dict]:
    """Of three, the second has two images."""
    rest = {"question": "Where is it?", "answers": ["left", "right", "behind"], "correct_answer": "left"}
    numbers = ([0], [1, 2], [2])
    return [{"image_bytes": [encoded(picture(n), "JPEG") for n in images], **rest} for images in numbers]


def sat_binary(root: Path) -> Path:
    root.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(sat_rows()), root / "SAT_train.parquet")
    return root / "SAT_train.parquet"


def sat_clone(root: Path) -> Path:
    hub_parquet(root / "SAT_train.parquet", sat_rows(), "image_bytes")
    return root


def cv_bench_row(number: int = 0, task: str = "Count") -> dict:
    question, choices = "How many organs are in the image?", ["3", "2", "1", "0"]
    lettered = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return {
        "task": task,
        "image": encoded(picture(number)),
        "question": question,
        "choices": choices,
        "answer": "(C)",
        "prompt": f"{question} Select from the following choices.\n{lettered}",
        "filename": "img/2D/count/ade20k_10.png",
    }


def cv_bench_clone(root: Path) -> Path:
    hub_parquet(root / "test_2d.parquet", [cv_bench_row()])
    hub_parquet(root / "test_3d.parquet", [cv_bench_row(1, "Depth")])
    return root


def cv_bench_jsonl(root: Path) -> Path:
    save(picture(), root / "img" / "2D" / "count" / "ade20k_10.png")
    row = {name: value for name, value in cv_bench_row().items() if name != "image"}
    return to_json(root / "test_2d.jsonl", [row])


def geoqa_parquet(root: Path) -> Path:
    row = {"image": encoded(picture()), "problem": "angle 1 = ()", "solution": "<answer> 145° </answer>"}
    return hub_parquet(root / "train.parquet", [row])


def geoqa_jsonl(root: Path) -> Path:
    save(picture(), root / "Geo170K" / "images" / "test" / "0.png")
    row = {"image_path": "./Geo170K/images/test/0.png", "question": "BC is ()", "ground_truth": "\\frac{20}{3}cm"}
    return to_json(root / "geoqa_test_prompts.jsonl", [row])


def flowers_parquet(root: Path) -> Path:
    row = {
        "image": encoded(picture().convert("RGBA")),
        "problem": "This is an image. Output the thinking process in <think> </think>",
        "solution": "<answer>pink primrose</answer>",
    }
    return hub_parquet(root / "train.parquet", [row])


def flowers_list(root: Path) -> Path:
    save(picture(), root / "image_06734.jpg")
    (root / "oxford_flowers.txt").write_text("pink primrose\nglobe thistle\n")
    torch.save([{"/another/machine/jpg/image_06734.jpg": {"label": 1}}], root / "oxford_flowers.pth")
    return root / "oxford_flowers.pth"


TARGET = {"label": "target", "points": [[12.0, 8.0], [48.0, 8.0], [48.0, 32.0]]}  # of a picture of 96 × 64


def reason_seg(root: Path, split: str = "train", shapes: list[dict] | None = None, texts: int = 1) -> Path:
    save(picture(), root / split / "a.jpg")
    texts = [f"the food with protein {i}" for i in range(texts)]
    to_json(root / split / "a.json", {"text": texts, "is_sentence": False, "shapes": shapes or [TARGET]})
    return root


def lisa_hub(root: Path) -> Path:
    mask = [[8 <= y < 32 and 24 <= x < 48 for x in range(96)] for y in range(64)]
    row = {"image": encoded(picture()), "text": "the food", "mask": mask, "img_height": 64, "img_width": 96}
    return hub_parquet(root / "test.parquet", [row])


def lisa_val(root: Path) -> Path:
    return reason_seg(root, "val", texts=3)


# What each layout is of: the data source, the golds, and how the first question begins.
FLOWER = ("laolao77/ViRFT_CLS_flower_4_shot", "Which species of flower does the image show?")
CV_BENCH = "nyu-visionx/CV-Bench/"
CASES = [
    ("sat train", sat_json, ["array/SAT"] * 2, ["left", "right"], "Where is it?"),
    ("sat train", sat_binary, ["array/SAT"] * 2, ["left"] * 2, "Where is it?\nOptions: "),
    ("sat train", sat_clone, ["array/SAT"] * 2, ["left"] * 2, "Where is it?\nOptions: "),
    (
        "cv_bench test",
        cv_bench_clone,
        [f"{CV_BENCH}Count", f"{CV_BENCH}Depth"],
        ['["(C)", "1"]'] * 2,
        "How many organs",
    ),
    (
        "cv_bench test",
        cv_bench_jsonl,
        [f"{CV_BENCH}Count"],
        ['["(C)", "1"]'],
        "How many organs are in the image? Select",
    ),
    ("geoqa train", geoqa_parquet, ["leonardPKU/GEOQA_R1V_Train_8K"], ["145°"], "angle 1 = ()"),
    ("geoqa test", geoqa_jsonl, ["Luckyjhg/Geo170K"], ["\\frac{20}{3}cm"], "BC is ()"),
    ("flowers train", flowers_parquet, [FLOWER[0]], ["pink primrose"], FLOWER[1]),
    ("flowers test", flowers_list, [FLOWER[0]], ["globe thistle"], FLOWER[1]),
    ("lisa train", reason_seg, ["dvlab-research/LISA"], ["(125,125),(500,500)"], "the food with protein 0"),
    ("lisa val", lisa_val, ["dvlab-research/LISA/val"], ["(125,125),(500,500)"], "the food with protein 0"),
    ("lisa test", lisa_hub, ["dvlab-research/LISA/test"], ["(250,125),(500,500)"], "the food"),
]


@pytest.mark.parametrize(("name", "make", "sources", "golds", "question"), CASES)
def test_every_set_is_read_as_the_hub_and_as_local_files_have_it(tmp_path, name, make, sources, golds, question):
    rows = prepare(tmp_path, name, make(tmp_path / "in"))
    assert [row["reward_model"]["ground_truth"] for row in rows] == golds
    assert [row["data_source"] for row in rows] == sources
    name, split = name.split()
    first, extra = rows[0], rows[0]["extra_info"]
    assert extra["question"].startswith(question)
    assert (extra["split"], extra["index"]) == (split, 0)
    assert (extra["image_width"], extra["image_height"]) == (96, 64)
    (image,) = first["images"]
    assert image["path"] is None
    assert opened(image["bytes"]).size == (96, 64)
    wording = TEMPLATES[SETS[name].template].user.replace("{question}", extra["question"])
    assert first["prompt"] == [{"role": "user", "content": "<image>" + wording}]
    assert (extra["mask"] is not None) == (name == "lisa")
    for row in rows:  # the gold, in the form that the prompt asks for, gets the full reward
        truth = row["reward_model"]["ground_truth"]
        opening = "" if row["prompt"][0]["content"].endswith("<think>") else "<think>"
        for gold in json.loads(truth) if truth.startswith("[") else [truth]:
            scored = compute_score(row["data_source"], f"{opening}so</think>\n<answer>{gold}</answer>", truth)
            assert (scored["acc"], scored["format"]) == (1, 1)
        scored = compute_score(row["data_source"], f"{opening}so</think><answer>(1,1),(2,2)</answer>", truth)
        assert scored["acc"] == 0


def test_sats_questions_about_two_images_go_and_its_options_are_mixed_the_same_way_each_time(tmp_path, capsys):
    rows = prepare(tmp_path, "sat train", sat_binary(tmp_path / "in"))
    assert [row["images"][0]["bytes"] for row in rows] == [sat_rows()[i]["image_bytes"][0] for i in (0, 2)]
    assert "sat train: 3 rows read, 2 questions" in capsys.readouterr().out
    options = rows[0]["extra_info"]["question"].partition("Options: ")[2]
    assert sorted(options.split(", ")) == ["behind", "left", "right"]
    again = prepare(tmp_path, "sat train", tmp_path / "in" / "SAT_train.parquet")
    assert again == rows


def test_lisas_training_images_make_a_row_of_each_wording_and_count_once(tmp_path, capsys):
    folder = reason_seg(tmp_path / "in", texts=3)
    rows = prepare(tmp_path, "lisa train", folder)
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2]
    assert len({row["extra_info"]["question"] for row in rows}) == 3
    assert "lisa train: 1 row read, 3 questions" in capsys.readouterr().out
    assert run(tmp_path, "lisa train", folder, counted=True) == 1
    assert "lisa, train: 1 rows, known are 239" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "box", "values"),
    [
        (["target"], "(0,0),(104,156)", {0, 1}),
        (["flag", "target"], "(208,0),(312,156)", {0, 1}),
        (["ignore", "target", "target"], "(208,0),(312,156)", {0, 1, 255}),
        (["target", "target"], "(0,0),(104,156)", {0, 1}),
    ],
)
def test_lisas_gold_is_the_first_target_and_its_mask_has_all(tmp_path, labels, box, values):
    squares = [
        {"label": label, "points": [[20 * i, 0], [20 * i + 10, 0], [20 * i + 10, 10], [20 * i, 10]]}
        for i, label in enumerate(labels)
    ]
    (row,) = prepare(tmp_path, "lisa val", reason_seg(tmp_path / "in", "val", squares))
    assert row["reward_model"]["ground_truth"] == box
    mask = opened(row["extra_info"]["mask"])
    assert mask.size == (96, 64)
    assert {value for _, value in mask.getcolors()} == values


def test_lisas_mask_has_the_size_of_the_image_in_the_file(tmp_path):
    folder = tmp_path / "in"
    save(picture(size=(960, 640)), folder / "val" / "a.jpg")
    shape = {"label": "target", "points": [[96, 64], [480, 64], [480, 320], [96, 320]]}
    to_json(folder / "val" / "a.json", {"text": ["it"], "is_sentence": False, "shapes": [shape]})
    (row,) = prepare(tmp_path, "lisa val", folder)
    width, height = row["extra_info"]["image_width"], row["extra_info"]["image_height"]
    mask = opened(row["extra_info"]["mask"])
    assert mask.size == (width, height) != (960, 640)
    x1, y1, x2, y2 = mask.getbbox()
    assert [round(value, 1) for value in (x1 / width, y1 / height, x2 / width, y2 / height)] == [0.1, 0.1, 0.5, 0.5]
    assert row["reward_model"]["ground_truth"] == "(100,100),(500,500)"  # thousandths: of either size


@given(
    st.tuples(*[st.floats(-50, 3050, allow_nan=False)] * 4),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
def test_boxes_are_in_thousandths_and_inside_the_image(box, size):
    numbers = [int(n) for n in box_text(box, size).replace("(", "").replace(")", "").split(",")]
    assert all(0 <= n <= 1000 for n in numbers)
    lengths = (*size, *size)
    for number, value, length in zip(numbers, box, lengths, strict=True):
        if 0 <= value <= length:
            assert 0 <= value / length * 1000 - number < 1


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (picture().convert("RGBA"), "PNG", {}),
        (picture().quantize(8), "PNG", {}),
        (picture(), "BMP", {}),
        (picture(), "WEBP", {"lossless": True}),
        (picture(), "TIFF", {}),
    ],
)
def test_whatever_the_file_format_the_same_pixels_are_the_same_image(image, form, options):
    other = load({"bytes": encoded(image, form, **options), "path": "x.png"})
    assert other.sha256 == load(encoded(picture())).sha256
    image = opened(other.data)
    assert (image.mode, image.format, image.tobytes()) == ("RGB", "PNG", picture().tobytes())


def test_bytes_that_need_no_change_are_kept():
    data = encoded(picture(), "JPEG")
    assert load(data).data == data


def test_what_is_transparent_is_white():
    clear = load(encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0))))
    assert opened(clear.data).getpixel((5, 5)) == (255, 255, 255)


def test_an_image_stands_as_a_viewer_shows_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to show it
    turned = tmp_path / "turned.jpg"
    picture(size=(96, 64)).save(turned, exif=exif)
    loaded = load(turned)
    assert (loaded.width, loaded.height) == images.size_as_shown(turned) == (64, 96)


@pytest.mark.parametrize(
    "size",
    [(1200, 900), (640, 627), (633, 634), (3000, 20), (20, 400), (10, 10), (27, 2000), (96, 64), (448, 896)],
)
def test_the_model_sees_the_pixels_that_its_processor_would_have_made(size):
    """With the paper's bound in our data, the processor needs no bound of its own."""

    image = Image.effect_noise(size, 90).convert("RGB")
    loaded = load(encoded(image))
    wide_open = Qwen2VLImageProcessorPil(min_pixels=images.MIN_PIXELS, max_pixels=12_845_056)
    bounded = Qwen2VLImageProcessorPil(min_pixels=images.MIN_PIXELS, max_pixels=images.MAX_PIXELS)
    ours = wide_open(opened(loaded.data), return_tensors="pt")
    theirs = bounded(image, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert loaded.width * loaded.height <= images.MAX_PIXELS
    assert min(loaded.width, loaded.height) >= 28


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([100_000, 401_408]))
def test_scaled_images_keep_their_aspect_ratio_and_are_scaled_once(width, height, max_pixels):
    if max(width, height) > 200 * min(width, height):
        return
    loaded = load(encoded(Image.new("RGB", (width, height))), max_pixels)
    assert loaded.scaled == ((loaded.width, loaded.height) != (width, height))
    if loaded.scaled:
        assert loaded.width % 28 == loaded.height % 28 == 0
        if (most := 28 / min(loaded.width, loaded.height)) < 1:  # each side is off by less than a token's side
            assert 1 - most <= loaded.width / loaded.height * height / width <= 1 / (1 - most)
    again = load(loaded.data, max_pixels)
    assert (again.data, again.scaled) == (loaded.data, False)


NOISE = encoded(Image.effect_noise((200, 200), 90), "JPEG")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (NOISE[: len(NOISE) // 2], "image file is truncated"),
        (b"<html>404</html>", "not an image"),
        (b"", "not an image"),
        (None, "No such file or directory"),
        (encoded(Image.new("RGB", (5000, 20))), "5000 × 20 pixels: absolute aspect ratio must be smaller than 200"),
    ],
)
def test_a_broken_image_is_named_and_counted(tmp_path, capsys, data, why):
    folder = tmp_path / "in"
    save(picture(), folder / "good.png")
    if data is not None:
        (folder / "broken.jpg").write_bytes(data)
    source = to_json(folder / "rows.json", [geoqa_row(name) for name in ("good.png", "broken.jpg", "good.png")])
    written = prepare(tmp_path, "geoqa train", source)
    out = capsys.readouterr().out
    assert [row["extra_info"]["index"] for row in written] == [0, 2]
    assert "geoqa train: 3 images, 0 scaled down to 401,408 pixels, 1 broken" in out
    assert "1 row failed a check (row 1 has an image that cannot be used (" in out
    assert re.search(f"broken.jpg: {why}", out)
    assert run(tmp_path, "geoqa train", source, "--strict") == 1
    assert why in capsys.readouterr().err

    elsewhere = tmp_path / "evaluation"
    assert run(elsewhere, "geoqa test", source) == 1  # another number of questions
    error = capsys.readouterr().err
    assert why in error
    assert "--allow-broken leaves them out" in error
    assert not elsewhere.exists()
    assert run(elsewhere, "geoqa test", source, "--allow-broken") == 0
    out = capsys.readouterr().out
    assert "1 row failed a check" in out
    assert "geoqa test: 2 rows written" in out


def test_a_lisa_image_that_cannot_be_read_is_reported_as_such(tmp_path, capsys):
    folder = reason_seg(tmp_path / "in", "val")
    (folder / "val" / "a.jpg").write_text("oops")
    assert run(tmp_path, "lisa val", folder) == 1
    assert "row 0 has an image that cannot be used (a.jpg: not an image)" in capsys.readouterr().err


def test_large_images_are_scaled_down(tmp_path, capsys):
    folder = tmp_path / "in"
    save(picture(size=(2000, 1000)), folder / "large.png")
    source = to_json(folder / "rows.json", [geoqa_row("large.png")])
    for pixels in (401_408, 100_000):
        (row,) = prepare(tmp_path, "geoqa train", source, "--max-pixels", str(pixels))
        size = row["extra_info"]["image_width"], row["extra_info"]["image_height"]
        assert size == images.processor_size((2000, 1000), pixels)
        assert opened(row["images"][0]["bytes"]).size == size
        assert f"1 image, 1 scaled down to {pixels:,} pixels, 0 broken" in capsys.readouterr().out


def test_images_elsewhere(tmp_path):
    source = geoqa_jsonl(tmp_path / "in")
    moved = source.rename(tmp_path / "prompts.jsonl")
    assert run(tmp_path, "geoqa test", moved) == 1
    assert prepare(tmp_path, "geoqa test", moved, "--images", str(tmp_path / "in"))


def test_a_file_is_the_same_bytes_each_time(tmp_path):
    source = cv_bench_clone(tmp_path / "in")
    written = []
    for out in ("a", "b"):
        prepare(tmp_path / out, "cv_bench test", source)
        written.append((tmp_path / out / "out" / "cv_bench_test.parquet").read_bytes())
    assert written[0] == written[1]


# --- the checks -----------------------------------------------------------------------------------


def test_row_counts_and_those_of_each_part(tmp_path, capsys, monkeypatch):
    source = cv_bench_clone(tmp_path / "in")
    assert run(tmp_path, "cv_bench test", source, counted=True) == 1
    assert "cv_bench, test: 2 rows, known are 2,638" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    entry = SETS["cv_bench"]
    small = replace(entry.splits["test"], rows=(2,), parts={"Count": 2})
    monkeypatch.setitem(SETS, "cv_bench", replace(entry, splits={"test": small}))
    assert run(tmp_path, "cv_bench test", source, counted=True) == 1
    assert "rows of each part are Count 1, Depth 1, known are Count 2" in capsys.readouterr().err
    assert run(tmp_path, "cv_bench test", source) == 0
    assert "cv_bench test: 2 rows read (Count 1, Depth 1)" in capsys.readouterr().out


def test_the_known_counts_of_the_parts_add_up():
    for entry in VISION_SETS.values():
        for split in entry.splits.values():
            if split.parts:
                assert (sum(split.parts.values()),) == split.rows


def test_a_count_that_nobody_knows_is_not_checked_and_said_so(tmp_path, capsys):
    assert run(tmp_path, "sat train", sat_json(tmp_path / "in"), counted=True) == 0
    assert "sat train: how many rows it should have is not known" in capsys.readouterr().out


def test_a_leak_is_the_same_question_about_the_same_image(tmp_path, capsys):
    """Every classification set asks one question of all its images."""
    root = tmp_path / "in"
    for number in range(3):
        save(picture(number), root / f"{number}.png")
    picture(1).save(root / "1.bmp")  # another file, the same image

    test = to_json(root / "test.json", [geoqa_row("1.bmp")])
    rows = [geoqa_row("0.png"), geoqa_row("1.png"), geoqa_row("1.png", "2 = ()")]
    train = to_json(root / "train.json", rows)
    prepare(tmp_path, "geoqa test", test)
    kept = prepare(tmp_path, "geoqa train", train)
    assert "(row 1 is in geoqa_test.parquet): left out" in capsys.readouterr().out
    assert [row["extra_info"]["index"] for row in kept] == [0, 2]

    assert run(tmp_path / "other", "geoqa train", train, "--against", str(test)) == 0  # as downloaded
    assert "(row 1 is in test.json): left out" in capsys.readouterr().out
    prepare(tmp_path / "late", "geoqa train", train)
    assert run(tmp_path / "late", "geoqa test", test) == 1
    assert "1 question of this set in geoqa_train.parquet" in capsys.readouterr().err


def test_a_leak_is_found_whatever_the_images_were_scaled_to(tmp_path, capsys):
    save(picture(size=(1000, 500)), tmp_path / "in" / "a.png")
    source = to_json(tmp_path / "in" / "a.json", [geoqa_row("a.png")])
    prepare(tmp_path, "geoqa test", source, "--max-pixels", "10000")
    assert run(tmp_path, "geoqa train", source) == 1
    assert "row 0 is in geoqa_test.parquet" in capsys.readouterr().out


def test_lisas_val_set_counts_as_evaluation(tmp_path, capsys):
    reason_seg(tmp_path / "in", "val")
    folder = reason_seg(tmp_path / "in", "train", texts=2)
    prepare(tmp_path, "lisa val", folder)
    assert len(prepare(tmp_path, "lisa train", folder)) == 1
    assert "row 0 is in lisa_val.parquet" in capsys.readouterr().out


def test_text_and_vision_sets_share_a_folder(tmp_path):
    prepare(tmp_path, "cv_bench test", cv_bench_clone(tmp_path / "in"))
    source = to_json(tmp_path / "math.json", [{"problem": cv_bench_row()["prompt"], "answer": "1"}])
    assert run(tmp_path, "math train", source) == 0
    prepare(tmp_path, "sat train", sat_json(tmp_path / "sat"))


@pytest.mark.parametrize("solution", ["<answer></answer>", None])
def test_rows_without_a_gold(tmp_path, capsys, solution):
    save(picture(), tmp_path / "in" / "a.png")
    rows = [geoqa_row("a.png"), geoqa_row("a.png") | {"solution": solution}]
    assert len(prepare(tmp_path, "geoqa train", to_json(tmp_path / "in" / "a.json", rows))) == 1
    assert "(row 1 has no gold answer): left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ([{"label": "ignore", "points": [[0, 0], [9, 9]]}], "has no gold answer"),
        ([{"label": "target", "points": [[5, 5], [5, 50]]}], "gold answer '(52,78),(52,781)' cannot be read"),
    ],
)
def test_a_region_without_area_is_no_gold(tmp_path, capsys, shapes, why):
    assert run(tmp_path, "lisa val", reason_seg(tmp_path / "in", "val", shapes)) == 1
    assert f"row 0 {why}" in capsys.readouterr().err


# --- prompts --------------------------------------------------------------------------------------


def test_t4s_prompt_ends_with_the_opened_thinking_and_its_format_reward_knows(tmp_path, capsys):
    (row, *_) = prepare(tmp_path, "sat train", sat_json(tmp_path / "in"))
    assert row["prompt"][0]["content"].endswith("\n<think>")
    assert format.think_answer_opened("so</think> <answer>left</answer>")
    assert "use it with +prompt=plain" in capsys.readouterr().out


def test_a_wording_of_ones_own_says_where_the_image_stands(tmp_path):
    source = geoqa_parquet(tmp_path / "in")
    file = tmp_path / "wording.txt"
    for wording, content in {
        "Q: {question}": "<image>Q: angle 1 = ()",
        "Q: {question}\nI: <image>": "Q: angle 1 = ()\nI: <image>",
    }.items():
        file.write_text(wording)
        (row,) = prepare(tmp_path, "geoqa train", source, "--template", str(file))
        assert row["prompt"] == [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("plain", [False, True])
def test_verl_reads_the_file_and_its_prompts_have_the_length_that_was_counted(tmp_path, model_folder, capsys, plain):
    tokenizer, processor = (kind.from_pretrained(model_folder) for kind in (AutoTokenizer, Qwen2VLImageProcessorPil))
    name, root = "sat" if plain else "geoqa", tmp_path / "in"
    save(picture(size=(1000, 900)), root / "large.png")
    save(picture(size=(100, 50)), root / "small.png")
    rows = [geoqa_row("large.png"), geoqa_row("small.png", "1 = () again")]
    if plain:
        rows = [{"messages": [{"content": row["problem"]}, {"content": "1"}], "images": [row["image"]]} for row in rows]
    source = to_json(root / "rows.json", rows)
    limits = ["--tokenizer", str(model_folder), "--max-prompt-length"]
    prepare(tmp_path, name, source, *limits, "9999")
    out = capsys.readouterr().out

    data = verl_data([tmp_path / "out" / f"{name}_train.parquet"], tokenizer, tmp_path, processor=processor)
    if plain:
        tokenizer.chat_template = PLAIN  # as veRL does with +prompt=plain
    lengths = []
    for i, size in enumerate([(644, 588), (100, 50)]):
        messages = data[i]["raw_prompt"]
        (image,) = [piece["image"] for piece in messages[0]["content"] if piece["type"] == "image"]
        assert image.size == size
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ("<|im_start|>" in text) != plain
        assert text.startswith("<|vision_start|>" if plain else "<|im_start|>user\n<|vision_start|>")
        cells = int(processor(image, return_tensors="pt")["image_grid_thw"].prod()) // processor.merge_size**2
        text = text.replace("<|image_pad|>", "<|image_pad|>" * cells)  # as Qwen's processor does
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert f"longest prompt {max(lengths):,} tokens of 9,999 allowed" in out
    assert len(prepare(tmp_path, name, source, *limits, str(max(lengths) - 1))) == 1
    assert f"(row 0 has {max(lengths):,} tokens): left out" in capsys.readouterr().out


def test_all_vision_sets_are_evaluated_together(tmp_path, model_folder):
    """As data.val_files=[...]: veRL concatenates the files."""
    for name, make, *_ in CASES:
        if not name.endswith("train"):
            prepare(tmp_path, name, make(tmp_path / f"{make}{name}"))
    files = sorted((tmp_path / "out").iterdir())
    data = verl_data(files, AutoTokenizer.from_pretrained(model_folder), tmp_path, processor=object())
    assert len(data) == len(files) == 5
    assert all(row["raw_prompt"][0]["content"][0]["type"] == "image" for row in data)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("geoqa", "test", "geoqa_test_prompts.jsonl --images FOLDER"),
        ("flowers", "test", "--source oxford_flowers.pth --images"),
        ("cars", "test", "--source stanford_cars.pth --images"),
        ("lisa", "train", "--source ReasonSeg"),
    ],
)
def test_what_is_on_no_hub_says_where_to_get_it(tmp_path, capsys, name, split, says):
    assert main([name, "--out", str(tmp_path / "out"), "--split", split]) == 1
    error = capsys.readouterr().err
    assert f"{name} {split} is not a data set on the hub" in error
    assert says in error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "(F)"}, "row 0: the answer '(F)' is none of the 4 choices"),
        ({"task": "Size"}, "row 0: the task is 'Size', known are Count, Relation, Depth, Distance"),
        ({"prompt": " "}, "row 0: the question is ' ', expected text"),
    ],
)
def test_rows_of_another_data_set(tmp_path, capsys, row, message):
    source = hub_parquet(tmp_path / "in" / "test.parquet", [cv_bench_row() | row])
    assert run(tmp_path, "cv_bench test", source) == 1
    assert message in capsys.readouterr().err


def test_a_validation_list_is_data_and_not_code(tmp_path, capsys):
    folder = tmp_path / "in"
    source = flowers_list(folder)
    (folder / "oxford_flowers.txt").unlink()
    assert run(tmp_path, "flowers test", source) == 1
    assert "oxford_flowers.txt: No such file or directory. It holds the class names" in capsys.readouterr().err
    (folder / "oxford_flowers.txt").write_text("pink primrose\n")
    assert run(tmp_path, "flowers test", source) == 1
    assert "has the label 1, and the .txt beside it 1 names" in capsys.readouterr().err
    torch.save([{"x.jpg": {"label": Path("x")}}], source)
    assert run(tmp_path, "flowers test", source) == 1
    assert "oxford_flowers.pth: cannot be read" in capsys.readouterr().err
