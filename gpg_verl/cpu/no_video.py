"""Stands in for a model's video processor, which needs torchvision."""

from __future__ import annotations

from transformers import BaseVideoProcessor  # without torchvision a placeholder, which processors are checked against
from transformers.utils import PushToHubMixin

from gpg_verl.cpu.qwen_vl_utils import NO_VIDEO


class NoVideoProcessor(BaseVideoProcessor, PushToHubMixin):
    """Refuses videos; keeps the settings, so that a checkpoint saved here has them elsewhere."""

    _backends = ()
    _auto_class = None
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, settings: dict):
        self.settings = settings

    def __call__(self, *args, **kwargs):
        raise RuntimeError(NO_VIDEO)

    def to_dict(self) -> dict:
        return dict(self.settings)
