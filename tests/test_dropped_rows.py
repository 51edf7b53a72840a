"""What veRL's filter drops, with veRL's own data set class on real files: text, and images for a tiny Qwen2-VL."""

from __future__ import annotations

import contextlib
import io
import sys

import datasets
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

from gpg_verl.guards.dropped_rows import filter_watched
from gpg_verl.guards.guarded_run import GuardedRun

ROWS = 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder / "model")


@pytest.fixture(scope="module")
def processor(tiny_vision_folder):
    from verl.utils.tokenizer import hf_processor

    return hf_processor(str(tiny_vision_folder / "model"))


def read(file, tokenizer, processor=None, *, watch=0.05, filter=True, max_samples=-1, **config):
    config = {"max_prompt_length": 24, "filter_overlong_prompts": filter, "cache_dir": str(file.parent), **config}
    watched = contextlib.nullcontext() if watch is None else filter_watched(watch, "algorithm.gpg.max_dropped_share")
    with watched:
        return RLHFDataset(str(file), tokenizer, OmegaConf.create(config), processor, max_samples)


def texts(folder, long: int):
    """A file of ROWS prompts, the last `long` of which are too long."""
    contents = ["a" * (40 if i >= ROWS - long else 4) for i in range(ROWS)]
    file = folder / f"{long}.parquet"
    pd.DataFrame({"prompt": [[{"role": "user", "content": c}] for c in contents]}).to_parquet(file)
    return file


def pictures(folder, broken: int = 0):
    png = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(png, "PNG")
    data = [b"no picture" if i < broken else png.getvalue() for i in range(ROWS)]
    file = folder / f"pictures{broken}.parquet"
    images = [[{"bytes": d, "path": None}] for d in data]
    prompt = [{"role": "user", "content": "<image> red"}]
    pd.DataFrame({"prompt": [prompt] * ROWS, "images": images}).to_parquet(file)
    return file


@pytest.mark.parametrize(
    ("long", "line"),
    [(0, "0 of 20 rows (0.0%) dropped"), (1, "1 of 20 rows (5.0%) dropped by veRL's filter; of 1 looked at, 1 longer")],
)
def test_a_small_share_is_counted(tmp_path, tokenizer, capsys, long, line):
    assert len(read(texts(tmp_path, long), tokenizer)) == ROWS - long
    assert line in capsys.readouterr().out


def test_a_larger_share_is_an_error_that_names_the_setting(tmp_path, tokenizer):
    file = texts(tmp_path, 2)
    parts = (
        *(str(file), "2 of 20 rows (10.0%)", "2 longer than data.max_prompt_length=24 tokens", "share of 0.05"),
        *("raise data.max_prompt_length", "+algorithm.gpg.max_dropped_share=0.1 or more"),
    )
    with pytest.raises(RuntimeError) as error:
        read(file, tokenizer)
    assert [part for part in parts if part not in str(error.value)] == []
    assert len(read(file, tokenizer, watch=0.1)) == ROWS - 2


def test_nothing_left_is_an_error_whatever_the_setting(tmp_path, tokenizer):
    with pytest.raises(RuntimeError, match=r"20 of 20 rows \(100.0%\)"):
        read(texts(tmp_path, ROWS), tokenizer, watch=1.0)


def test_a_part_of_the_rows(tmp_path, tokenizer, capsys):
    """veRL's max_samples selects before it filters."""
    dropped = 12 - len(read(texts(tmp_path, 10), tokenizer, watch=1.0, max_samples=12, shuffle=True, seed=1))
    assert 0 < dropped < 12
    assert f"{dropped} of 12 rows" in capsys.readouterr().out


def test_rows_that_cannot_be_processed_are_told_from_long_ones(tmp_path, processor, capsys):
    assert len(read(pictures(tmp_path, 1), processor.tokenizer, processor)) == ROWS - 1
    out = capsys.readouterr().out
    assert "1 could not be processed: PIL.UnidentifiedImageError: cannot identify image file" in out


def test_a_missing_package_is_named_and_mending_it_is_enough(tmp_path, processor, monkeypatch):
    """Nothing of the failed filter is kept, though `datasets` writes it to the disk."""
    file = pictures(tmp_path)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "qwen_vl_utils", None)
        with pytest.raises(RuntimeError, match=r"ModuleNotFoundError.*pip install qwen_vl_utils"):
            read(file, processor.tokenizer, processor)
    assert len(read(file, processor.tokenizer, processor)) == ROWS


def test_an_empty_result_from_an_earlier_run_is_not_believed(tmp_path, processor, monkeypatch):
    file = pictures(tmp_path)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "qwen_vl_utils", None)
        assert len(read(file, processor.tokenizer, processor, watch=None)) == 0
    assert len(read(file, processor.tokenizer, processor, watch=None)) == 0  # veRL by itself
    assert len(read(file, processor.tokenizer, processor)) == ROWS


def test_without_the_filter_and_once_it_is_over_nothing_is_said(tmp_path, tokenizer, capsys):
    read(texts(tmp_path, 0), tokenizer)
    capsys.readouterr()
    assert len(read(texts(tmp_path, ROWS), tokenizer, watch=None)) == 0
    assert len(read(texts(tmp_path, ROWS), tokenizer, filter=False)) == ROWS
    assert "gpg_verl" not in capsys.readouterr().out


@pytest.mark.parametrize(("batch", "filled"), [(15, True), (16, False)])
def test_too_few_rows_for_a_step_end_the_run_before_its_models(batch, filled, tmp_path, tokenizer):
    """Of 20 rows the filter drops 5."""

    class Trainer:  # what veRL's has when it has read its data
        def _init_dataloader(self):
            self.train_dataset = read(file, tokenizer, watch=None)
            self.steps_per_epoch = len(self.train_dataset) // self.config.data.train_batch_size

    class Run(GuardedRun, Trainer):
        config = OmegaConf.create({"data": {"train_batch_size": batch, "train_files": "train.parquet"}})
        max_dropped_share = 0.5

        def __init__(self):
            pass

    file = texts(tmp_path, long=5)
    if filled:
        Run()._init_dataloader()
        return
    with pytest.raises(RuntimeError, match=r"15 rows of data.train_files=train.parquet .* data.train_batch_size=16"):
        Run()._init_dataloader()
