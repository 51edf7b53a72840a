"""What every preparation of data is checked for.

A row of training data that fails is left out, counted and named: it could only mislead the training. A row of
evaluation data that fails is an error, since a result over fewer questions is another result; --allow-broken leaves it
out too. A row count that is not the known one is an error: that is another data set, or half of one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpg_verl.data import DataError, images
from gpg_verl.data.dataset import DataSet, Row
from gpg_verl.data.images import Picture
from gpg_verl.data.source import read_file
from gpg_verl.data.templates import IMAGE, PLAIN, Messages, Template

LATEX_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[,;:! ])")
NOT_COMPARED = re.compile(r"[^\w+\-*/=<>^]|_")  # operators count: x + 1 and x − 1 are two questions
QUESTION_COLUMNS = ("extra_info", "problem", "question", "prompt")
IMAGE_COLUMNS = ("images", "image", "image_bytes", "image_path")
IMAGE_TOKEN = "<|image_pad|>"  # one in the text, which the processor repeats
Identity = tuple[str, str]  # a question, normalised, and the hash of its image ("" without one)


def check_count(data_set: DataSet, split: str, seen: int, parts: Mapping[str, int]) -> None:
    """Rows of the source, and rows of each part, against the known numbers; where none is known nothing is checked."""
    known = data_set.splits[split]
    if known.rows and seen not in known.rows:
        what = f"{seen:,} rows, known are {' or '.join(f'{n:,}' for n in known.rows)}"
    elif known.parts and parts != known.parts:
        what = f"rows of each part are {listed(parts)}, known are {listed(known.parts)}"
    else:
        return
    raise DataError(
        f"{data_set.name}, {split}: {what}. This is another data set, or a part of one: look at the source. "
        "--allow-count takes it as it is, --limit N takes its first rows."
    )


def listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count:,}" for part, count in sorted(parts.items()))


def normalised(text: str) -> str:
    """A question reduced to what tells it from others: no case, space, punctuation or LaTeX layout."""
    text = LATEX_SPACING.sub("", unicodedata.normalize("NFKC", text))
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("−", "-").replace("\\cdot", "*").replace("\\times", "*")
    return NOT_COMPARED.sub("", text.casefold())


def question_text(row: Row) -> str | None:
    """The question of a row of ours, of anyone's data in veRL's format, or of a raw data set."""
    extra = row.get("extra_info")
    candidates = [extra.get("question") if isinstance(extra, dict) else None, row.get("problem"), row.get("question")]
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt:
        candidates.append(prompt[-1].get("content"))
    return next((text for text in candidates if isinstance(text, str) and text.strip()), None)


def identity(text: str, picture: Picture | None) -> Identity:
    """What two rows must share to be one question. Of a vision set the text alone may stand in every row."""
    return normalised(text), picture.sha256 if picture else ""


def questions_of(files: Iterable[Path], with_images: bool) -> dict[Identity, str]:
    """The questions in these files, with the name of the file that each stands in.

    with_images: a question with an image is the same if both are. A file in our own format has the images' hashes; of
    any other the images are read.
    """
    found = {}
    for file in files:
        first = next(read_file(file, QUESTION_COLUMNS), {})
        hashed = bool((first.get("extra_info") or {}).get("image_sha256"))
        rows = read_file(file, QUESTION_COLUMNS if hashed or not with_images else None)
        identities = {
            _identity_of(row, text, f"{file}, row {number}", file.parent, with_images)
            for number, row in enumerate(rows)
            if (text := question_text(row))
        }
        if not identities:
            raise DataError(
                f"{file}: no questions found to compare with. Expected the fields extra_info.question, problem, "
                "question or prompt in its rows."
            )
        found |= dict.fromkeys(identities, file.name)
    return found


def _identity_of(row: Row, text: str, where: str, folder: Path, with_images: bool) -> Identity:
    if digest := (row.get("extra_info") or {}).get("image_sha256"):
        return normalised(text), digest
    value = next((row[name] for name in IMAGE_COLUMNS if row.get(name)), None) if with_images else None
    if value is None:
        return normalised(text), ""
    try:
        picture = images.load(value[0] if isinstance(value, list) else value, folder, images.MAX_PIXELS)
    except images.BrokenImage as error:
        raise DataError(
            f"{where}: its image cannot be compared with ({error}). Mend it, or make a parquet file of "
            "this set first and name that."
        ) from None
    return identity(text.replace(IMAGE, ""), picture)


class PromptLength:
    """Tokens of a prompt as veRL counts them: rendered by the chat template, with the answer's opening.

    An image takes as many tokens as its grid has cells: the model's own settings (preprocessor_config.json) say how
    large the processor makes it, and a cell is merge_size² patches. No processor is built for that, which takes
    torchvision.
    """

    def __init__(self, tokenizer: str, template: Template, with_images: bool):
        from transformers import AutoTokenizer  # seconds to import

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            self.grid = Grid.of(tokenizer) if with_images else None
        except (OSError, ValueError) as error:
            raise DataError(
                f"--tokenizer {tokenizer}: cannot be loaded ({str(error).splitlines()[0]}). Give a folder with a "
                f"Hugging Face tokenizer{' and image processor' if with_images else ''}, or a hub id."
            ) from None
        self.name = tokenizer
        self.chat_template = PLAIN if template.plain else None
        if not template.plain and not self.tokenizer.chat_template:
            raise DataError(
                f"--tokenizer {tokenizer}: it has no chat template, and veRL needs one. Use --template own with "
                "+prompt=plain in the run, or another tokenizer."
            )

    def __call__(self, messages: Messages, picture: Picture | None = None) -> int:
        if picture is not None:
            messages = [message | {"content": _pieces(message["content"])} for message in messages]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, chat_template=self.chat_template
        )
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if picture is None:
            return tokens
        if text.count(IMAGE_TOKEN) != 1:
            raise DataError(
                f"--tokenizer {self.name}: its chat template writes {text.count(IMAGE_TOKEN)} {IMAGE_TOKEN} for an "
                "image, expected 1. Counted are the tokens of Qwen2-VL and Qwen2.5-VL."
            )
        return tokens - 1 + self.grid.tokens(picture)


@dataclass(frozen=True)
class Grid:
    """How many tokens the processor of a model makes of an image."""

    side: int  # pixels of a token's side
    min_pixels: int
    max_pixels: int

    @classmethod
    def of(cls, model: str) -> Grid:
        """From the model's preprocessor_config.json; raises OSError, ValueError."""
        from transformers.image_processing_base import ImageProcessingMixin

        settings, _ = ImageProcessingMixin.get_image_processor_dict(model)
        size = settings.get("size") or {}
        least = settings.get("min_pixels", size.get("shortest_edge"))
        most = settings.get("max_pixels", size.get("longest_edge"))
        if None in (least, most) or "patch_size" not in settings or "merge_size" not in settings:
            raise ValueError("its preprocessor_config.json has no patch_size, merge_size and bounds of pixels")
        return cls(settings["patch_size"] * settings["merge_size"], least, most)

    def tokens(self, picture: Picture) -> int:
        size = images.processor_size((picture.width, picture.height), self.max_pixels, self.min_pixels, self.side)
        return size[0] * size[1] // self.side**2


def _pieces(content: str) -> list[dict[str, str]]:
    """A message as veRL hands it to the chat template: the image's place and the texts around it."""
    parts = re.split(f"({IMAGE})", content)
    return [{"type": "image"} if part == IMAGE else {"type": "text", "text": part} for part in parts if part]
