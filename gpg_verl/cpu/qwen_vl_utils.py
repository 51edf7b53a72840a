"""Stands in for the package `qwen_vl_utils` (0.0.14) where torchvision is missing: its images, not its videos.

Same names, arguments and results; imported under the package's name (see stand_ins.py).
"""

from __future__ import annotations

import math

from PIL import Image

MAX_RATIO = 200
MERGE = 2
MIN_TOKENS, MAX_TOKENS = 4, 16384
NO_VIDEO = (
    "this CPU environment has no torchvision, so it reads images but no videos: leave video rows out, or run where "
    "torchvision and qwen-vl-utils are installed"
)


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """The size (height, width) nearest to the given one with sides divisible by `factor` and min_pixels to max_pixels
    pixels in all.
    """
    max_pixels = MAX_TOKENS * factor**2 if max_pixels is None else max_pixels
    min_pixels = MIN_TOKENS * factor**2 if min_pixels is None else min_pixels
    if max_pixels < min_pixels:
        raise ValueError(f"max_pixels={max_pixels} is less than min_pixels={min_pixels}")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise ValueError(f"an image of {width}x{height} pixels: one side may be at most {MAX_RATIO} times the other")
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h, w = (math.floor(side / scale / factor) * factor for side in (height, width))
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return h, w


def fetch_image(ele: dict, image_patch_size: int = 14) -> Image.Image:
    """The RGB image of a message's part, resized for the model; transparent pixels become white.

    Args:
        ele: `image` or `image_url` is a PIL image or a local path; `resized_height` and `resized_width`, or
            `min_pixels` and `max_pixels`, set the size.
    """
    image = ele["image"] if "image" in ele else ele["image_url"]
    if not isinstance(image, Image.Image):
        if image.startswith(("http://", "https://", "data:")):
            raise ValueError(
                f"image {image[:60]!r}: without torchvision, images are read from local files or from the bytes in the "
                "data only"
            )
        image = Image.open(image.removeprefix("file://"))
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        image = white
    image = image.convert("RGB")
    factor = image_patch_size * MERGE
    if "resized_height" in ele and "resized_width" in ele:
        height, width = smart_resize(ele["resized_height"], ele["resized_width"], factor)
    else:
        height, width = smart_resize(image.height, image.width, factor, ele.get("min_pixels"), ele.get("max_pixels"))
    return image.resize((width, height))


def fetch_video(*args, **kwargs):
    raise RuntimeError(NO_VIDEO)


def extract_vision_info(conversations: list) -> list[dict]:
    """The image and video parts of a conversation, or of a list of them, in their order."""
    if isinstance(conversations[0], dict):
        conversations = [conversations]
    return [
        part
        for conversation in conversations
        for message in conversation
        if isinstance(message["content"], list)
        for part in message["content"]
        if part.keys() & {"image", "image_url", "video"} or part.get("type") in ("image", "image_url", "video")
    ]


def process_vision_info(
    conversations: list,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
) -> tuple:
    """(images, None), and the arguments of the video processor where asked for; images is None where there are none."""
    images = []
    for part in extract_vision_info(conversations):
        if "image" not in part and "image_url" not in part:
            raise RuntimeError(NO_VIDEO)
        images.append(fetch_image(part, image_patch_size))
    if return_video_kwargs:
        return images or None, None, {"do_sample_frames": False} | ({} if return_video_metadata else {"fps": []})
    return images or None, None
