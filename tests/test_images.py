"""What rows show: which images are the same, and which rows trees are not known for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpg_verl.training.images import Images, unsupported_inputs

IMAGE = 7  # its token
CONFIG = SimpleNamespace(image_token_id=IMAGE, video_token_id=8, vision_config=SimpleNamespace(spatial_merge_size=1))


def batch(*rows):
    """Rows (token ids, what it shows)."""
    ids = torch.nested.as_nested_tensor([torch.tensor(row) for row, _ in rows], layout=torch.jagged)
    return {"input_ids": ids, "multi_modal_inputs": [shown for _, shown in rows]}


def image(seed: int, patches: int = 4, size: int = 500) -> dict:
    pixels = torch.randn(patches, size, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 1, patches]])}


@pytest.fixture
def compared(monkeypatch):
    """Whether they were the same, of each two images that were compared whole."""
    found, equal = [], torch.equal

    def noted(*images):
        found.append(equal(*images))
        return found[-1]

    monkeypatch.setattr(torch, "equal", noted)
    return found


def test_each_image_is_compared_whole_with_the_one_that_it_is_a_copy_of_alone(compared):
    seeds = [0, 1, 0, 2, 1, 0]
    images = Images.of(batch(*(([1, *[IMAGE] * 4, 2], image(seed)) for seed in seeds)), CONFIG)
    assert images.item.reshape(6, 6)[:, 1].tolist() == [1, 2, 1, 3, 2, 1]
    assert images.first.reshape(6, 6).sum(1).tolist() == [1] * 6
    assert compared == [True] * 3
    shown = images.along(np.arange(18))
    assert [torch.equal(p, image(s)["pixel_values"]) for p, s in zip(shown["pixel_values"], [0, 1, 0], strict=True)]
    assert torch.cat(shown["image_grid_thw"]).tolist() == [[1, 1, 4]] * 3


def test_a_value_that_is_not_in_the_sample_tells_them_apart(compared):
    other = image(0)
    other["pixel_values"][0, 1] += 1
    images = Images.of(batch(*(([*[IMAGE] * 4], shown) for shown in (image(0), other))), CONFIG)
    assert images.item.tolist() == [1] * 4 + [2] * 4
    assert compared == [False]


def test_the_same_values_in_another_shape_are_another_image(compared):
    tall = {**image(0), "image_grid_thw": torch.tensor([[1, 4, 1]])}
    images = Images.of(batch(*(([*[IMAGE] * 4], shown) for shown in (image(0), tall))), CONFIG)
    assert (images.item.tolist(), compared) == ([1] * 4 + [2] * 4, [])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (([1, 2], {}), None),
        (([1, *[IMAGE] * 4], image(0)), None),
        (([1, *[IMAGE] * 4], {**image(0), "pixel_attention": torch.ones(1)}), "rows bring pixel_attention"),
    ],
)
def test_rows_that_trees_are_not_known_for(row, expected):
    reason = unsupported_inputs(batch(([3], None), row), CONFIG)
    assert reason == expected if expected is None else expected in reason


def test_no_row_has_an_image():
    assert Images.of(batch(([1], None), ([2], {})), CONFIG) is None
