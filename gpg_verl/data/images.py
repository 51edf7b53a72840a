"""An image of a data set as it goes into the parquet: read in full, RGB, and no larger than the model will see it.

Images are scaled down here and not by the model's processor. So the trainer, the rollout and any evaluation see the
same pixels whatever their own settings, a prompt's length is known before a run, and the files stay small. The size
is the one that Qwen's processors would choose (`smart_resize`): sides in multiples of 28, so that they leave the image
as it is. Smaller images stay untouched, and the processor rounds their sides.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 28  # pixels of an image token's side: patches of 14, merged 2 × 2
MIN_PIXELS = 56 * 56  # below it the processors scale up
MAX_PIXELS = 401_408  # of the paper's vision runs
AS_THEY_ARE = ("JPEG", "PNG")  # formats whose bytes are kept when nothing had to be changed
_ORIENTATION = 0x0112  # the EXIF tag


class BrokenImage(Exception):
    """An image that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Picture:
    data: bytes  # PNG or JPEG
    width: int
    height: int
    sha256: str  # of the RGB pixels before any scaling: the same for every file format and every max_pixels
    scaled: bool


def load(value: object, folder: Path | None, max_pixels: int) -> Picture:
    """The picture of a row's image: encoded bytes, a path, or the hub's {bytes, path}.

    A relative path is one under `folder`; an absolute one that is not here is another machine's, and only its file
    name counts. Raises BrokenImage.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _picture(value, "", max_pixels)
    if not isinstance(value, str | Path) or not str(value):
        raise BrokenImage("no image in this row")
    path = Path(value)
    if folder is not None and not (path.is_absolute() and path.exists()):
        path = folder / (path.name if path.is_absolute() else path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BrokenImage(f"{path}: {error.strerror or error}") from None
    return _picture(data, f"{path.name}: ", max_pixels)


def size_as_shown(path: Path) -> tuple[int, int] | None:
    """(width, height) of the image file as a viewer shows it; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return image.size[::-1] if turned else image.size
    except Exception:  # whatever a decoder makes of damaged data; `load` says what is wrong with it
        return None


def processor_size(size: tuple[int, int], max_pixels: int, min_pixels: int = MIN_PIXELS, side: int = SIDE):
    """(width, height) to which Qwen2-VL's and Qwen2.5-VL's processors scale an image."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # seconds to import

    try:
        return smart_resize(*size[::-1], side, min_pixels, max_pixels)[::-1]
    except ValueError as error:
        raise BrokenImage(f"{size[0]} × {size[1]} pixels: {error}") from None


def _picture(data: bytes, name: str, max_pixels: int) -> Picture:
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        keep = opened.format in AS_THEY_ARE and opened.mode == "RGB" and "transparency" not in opened.info
        keep = keep and opened.getexif().get(_ORIENTATION, 1) == 1
        image = opened if keep else _rgb(ImageOps.exif_transpose(opened))
        size = processor_size(image.size, max_pixels)
    except UnidentifiedImageError:  # its message holds a memory address
        raise BrokenImage(f"{name}not an image") from None
    except Exception as error:  # whatever a decoder makes of damaged data
        raise BrokenImage(f"{name}{error or type(error).__name__}") from None
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).hexdigest()
    # Too many pixels, as it is or with sides rounded by the processor, or too short a side.
    rounded = round(image.width / SIDE) * round(image.height / SIDE) * SIDE**2
    scaled = max(image.width * image.height, rounded) > max_pixels or min(image.size) < SIDE
    if scaled:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if scaled or not keep:
        data = png(image)
    return Picture(data, *image.size, digest, scaled)


def _rgb(image: Image.Image) -> Image.Image:
    """What is transparent is white, as in Qwen's own tools."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
