"""LISA's mask metrics: masks of boxes, by hand and by a real SAM of random weights, against gold masks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpg_verl.report.masks import IGNORED, KEY, box_of, main, measure, overlap, read_targets, summary
from gpg_verl.report.paper import Column
from gpg_verl.report.runs import load_run
from reward_fns import compute_score
from reward_fns.sources import LISA

TEST = f"{LISA}/test"
SIZE = (40, 20)  # width, height


def fill(image: Image.Image, pixels: tuple[int, int, int, int]) -> np.ndarray:
    """A segmenter whose mask is the box itself."""
    mask = np.zeros((image.height, image.width), bool)
    mask[pixels[1] : pixels[3], pixels[0] : pixels[2]] = True
    return mask


def gold(*boxes: tuple[int, int, int, int], ignored: tuple[int, int, int, int] | None = None) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    if ignored:
        mask[ignored[1] : ignored[3], ignored[0] : ignored[2]] = IGNORED
    return mask


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_file(file: Path, masks: list[np.ndarray | None], source: str = TEST) -> Path:
    """As `python -m gpg_verl.data lisa` writes it, in the columns that matter here."""
    image = png(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8))
    rows = []
    for index, mask in enumerate(masks):
        extra_info = {"index": index, "mask": None if mask is None else png(mask)}
        rows.append({"data_source": source, "images": [{"bytes": image, "path": None}], "extra_info": extra_info})
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def dump(run: Path, outputs: dict[int, list[str]], step: int = 0, source: str = TEST) -> Path:
    """A validation as veRL keeps it: the answers to each row, with what reward_fns returns."""
    (run / "validation").mkdir(parents=True, exist_ok=True)
    lines = []
    for row, texts in outputs.items():
        for n, text in enumerate(texts):
            score = compute_score(source, text, "(0,0),(500,500)", {"index": row})
            lines.append(json.dumps({"output": text, "uid": f"u{row}_{n}_0", "step": step, **score}))
    (run / "validation" / f"{step}.jsonl").write_text("\n".join(lines) + "\n")
    metrics = {"step": step, "data": {f"val-core/{source}/acc/mean@1": 0.5}}
    (run / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    return run


@pytest.mark.parametrize(
    ("predicted", "target", "ignored", "intersection", "union"),
    [
        ((0, 0, 10, 10), (5, 0, 15, 10), None, 50, 150),
        ((0, 0, 10, 10), (20, 0, 30, 10), None, 0, 200),
        ((0, 0, 0, 0), (20, 0, 30, 10), None, 0, 100),  # no box
        ((0, 0, 10, 10), (0, 0, 5, 10), (5, 0, 10, 10), 50, 50),  # what is ignored counts nowhere
        ((20, 0, 30, 10), (0, 0, 5, 10), (20, 0, 30, 5), 0, 100),
    ],
)
def test_overlap(predicted, target, ignored, intersection, union):
    found = overlap(fill(Image.new("RGB", SIZE), predicted), gold(target, ignored=ignored))
    assert found == (intersection, union)


@pytest.mark.parametrize(
    ("answer", "pixels"),
    [
        ("<think>x</think><answer>(0,0),(500,500)</answer>", (0, 0, 20, 10)),
        ("(250,500),(1000,1000)", (10, 10, 40, 20)),
        ("<answer>(0,0),(500,500),(1,1),(2,2)</answer>", None),  # several boxes are none
        ("<answer>everywhere</answer>", None),
        ("", None),
    ],
)
def test_an_answers_box_in_pixels(answer, pixels):
    assert box_of(answer, SIZE) == pixels


EXACT = "(0,0),(250,500)"  # of the small target
SMALL, LARGE = (0, 0, 10, 10), (0, 0, 40, 10)


@pytest.mark.parametrize(
    ("targets", "outputs", "giou", "error", "ciou", "answers", "boxes"),
    [
        # an exact answer for a small target, half of a large one: 1 and 0.5; 100 + 200 of 100 + 400 pixels
        ([SMALL, LARGE], [[EXACT], ["(0,0),(500,500)"]], 0.75, 0.25, 300 / 500, 2, 2),
        # no box and no answer are empty masks
        ([SMALL] * 4, [[EXACT], ["nowhere"], [], ["(500,0),(750,500)"]], 0.25, 0.25, 100 / 500, 4, 2),
        # several answers to an image are one image
        ([SMALL] * 2, [[EXACT, "no"], ["no", "no"]], 0.25, 0.25, 100 / 400, 4, 1),
        ([SMALL], [[EXACT]], 1.0, None, 1.0, 1, 1),
    ],
)
def test_giou_is_the_mean_over_images_and_ciou_over_pixels(
    tmp_path, targets, outputs, giou, error, ciou, answers, boxes
):
    file = data_file(tmp_path / "lisa_test.parquet", [gold(target) for target in targets])
    rows = [(TEST, str(row), "", text) for row, texts in enumerate(outputs) for text in texts]
    given = pd.DataFrame(rows, columns=[*KEY, "uid", "output"])
    assert summary(list(measure(given, read_targets([file]), fill)), step=3)[TEST] == {
        "step": 3,
        "images": len(targets),
        "answers": answers,
        "answers_with_a_box": boxes,
        "mask_giou": giou,
        "mask_giou_error": error and pytest.approx(error),
        "mask_ciou": ciou,
    }


corners = st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(21, 40), st.integers(10, 20))


@given(corners, corners)
def test_overlap_of_rectangles_is_the_boxes_iou(a, b):
    from reward_fns.box import generalized_iou

    found = overlap(fill(Image.new("RGB", SIZE), a), gold(b))
    assert found[0] / found[1] == pytest.approx(generalized_iou(a, b)[1])


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sam") / "sam"
    tiny.make_sam(folder)
    return folder


def test_the_command_with_a_real_sam(tmp_path, tiny_sam, capsys):
    """Random weights, so the masks mean nothing; but they are of the image's size, differ by box, and are kept."""
    run = dump(tmp_path / "eval", {0: ["(0,0),(500,500)"], 1: ["(500,0),(900,900)"], 2: ["nowhere"]}, step=1)
    dump(tmp_path / "eval", {0: ["(0,0),(500,500)"], 1: ["(0,0),(900,900)"], 2: ["nowhere"]}, step=12)  # the later one
    file = data_file(tmp_path / "lisa_test.parquet", [gold((0, 0, 20, 10))] * 3)
    assert main([str(run), "--data", str(file), "--model", str(tiny_sam)]) == 0
    said = capsys.readouterr().out
    assert f"{TEST}: mask gIoU" in said
    assert "over 3 images; 2 of 3 answers have a box" in said
    lines = [json.loads(line) for line in (run / "masks.jsonl").read_text().splitlines()]
    assert [line["box"] for line in lines] == [[0, 0, 20, 10], [0, 0, 36, 18], None]
    assert lines[0]["union"] >= 200 > lines[0]["intersection"] > 0
    assert (lines[2]["mask_iou"], lines[2]["union"]) == (0.0, 200)
    found = json.loads((run / "masks.json").read_text())["sources"][TEST]
    assert found["mask_giou"] == pytest.approx(sum(line["mask_iou"] for line in lines) / 3)
    assert found["step"] == 12
    result = load_run(run).results[Column(TEST, "mask_giou")]  # where the report finds it
    assert (result.value, result.questions) == (found["mask_giou"], 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no dump", "no validation/<step>.jsonl here"),
        ("no row", "its answers do not name their rows (row, data_source)"),
        ("no mask", "row 0: no gold mask. Make the file with `python -m gpg_verl.data lisa`"),
        ("empty mask", f"{TEST}, row 0: its gold mask is empty"),
        ("no file", "missing.parquet"),
        ("other data", f"1 of the run's rows are in none of the --data files, the first is {TEST}, row 0."),
        ("no model", "/nothing"),
    ],
)
def test_errors(tmp_path, tiny_sam, capsys, change, message):
    run = dump(tmp_path / "eval", {0: ["(0,0),(500,500)"]})
    mask = None if change == "no mask" else gold() if change == "empty mask" else gold((0, 0, 10, 10))
    file = data_file(tmp_path / "file.parquet", [mask], f"{LISA}/val" if change == "other data" else TEST)
    dumped = run / "validation/0.jsonl"
    if change == "no dump":
        dumped.unlink()
    if change == "no row":
        dumped.write_text(dumped.read_text().replace('"row"', '"line"'))
    file = tmp_path / "missing.parquet" if change == "no file" else file
    model = tmp_path / "nothing" if change == "no model" else tiny_sam
    assert main([str(run), "--data", str(file), "--model", str(model)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert not (run / "masks.json").exists()
