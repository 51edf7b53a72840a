"""Shared by the tests of gpg_verl.data: raw files in, `python -m gpg_verl.data` in this process, its rows out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from verl.utils.dataset.rl_dataset import RLHFDataset

from gpg_verl.data import images
from gpg_verl.data.__main__ import SETS, main
from gpg_verl.data.templates import PLAIN


def to_json(file: Path, rows: list[dict] | dict) -> Path:
    """A row a line in a .jsonl file, else one JSON text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) if file.suffix == ".jsonl" else json.dumps(rows))
    return file


def run(tmp_path: Path, name: str, source: Path | list[dict], *options: str, counted: bool = False) -> int:
    """The exit code for a data set ("gsm8k") or one split of it ("gsm8k train"), into tmp_path/out.

    counted: the number of rows is checked.
    """
    name, _, split = name.partition(" ")
    if isinstance(source, list):
        source = to_json(tmp_path / f"{name}.jsonl", source)
    place = ["--out", str(tmp_path / "out"), "--source", str(source), *(["--split", split] if split else [])]
    return main([name, *place, *([] if counted else ["--allow-count"]), *options])


def prepare(tmp_path: Path, name: str, source: Path | list[dict], *options: str) -> list[dict]:
    """The rows that are written of a split, the set's first unless it is named."""
    name, _, split = name.partition(" ")
    split = split or next(iter(SETS[name].splits))
    assert run(tmp_path, f"{name} {split}", source, *options) == 0
    return rows_of(tmp_path / "out" / f"{name}_{split}.parquet")


def rows_of(file: Path) -> list[dict]:
    return pq.read_table(file).to_pylist()


def verl_data(files: list[Path], tokenizer, tmp_path: Path, **options) -> RLHFDataset:
    """veRL's data set of these files; `options`: those of its config, and `processor`."""
    processor = options.pop("processor", None)
    config = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False, **options}
    return RLHFDataset([str(file) for file in files], tokenizer, OmegaConf.create(config), processor=processor)


def make_model(folder: Path) -> Path:
    """A byte-level tokenizer with Qwen's chat format and image marks, and Qwen2-VL's image processor."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    message = PLAIN.removeprefix("{% for message in messages %}").removesuffix("{% endfor %}")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
        chat_template="{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + message + "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ).save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=images.MIN_PIXELS, max_pixels=12_845_056).save_pretrained(folder)
    return folder
