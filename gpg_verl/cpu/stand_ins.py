"""Modules that need torchvision, which has no build beside the CPU build of torch: what images need of them.

A stand-in answers only where torchvision is missing, so where the real module could not be imported.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

TRANSFORMERS_IMAGES = "transformers.models.qwen2_vl.image_processing_qwen2_vl"


class StandIns(MetaPathFinder):
    """Finds a module by the name of the real one and loads it from another file."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name == "qwen_vl_utils":
            # veRL takes images out of messages with it (0.9.1); version 0.0.14 imports torchvision at its top.
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name("qwen_vl_utils.py"))
        if name == TRANSFORMERS_IMAGES:
            # vLLM 0.28 takes `smart_resize` from it; transformers has the same function for PIL beside it.
            pil = importlib.util.find_spec(TRANSFORMERS_IMAGES.replace("image_processing_", "image_processing_pil_"))
            if pil is None:
                raise RuntimeError(
                    f"{TRANSFORMERS_IMAGES} has no version for PIL beside it: this transformers is not one that "
                    "gpg_verl was written for (5.10.4)"
                )
            return importlib.util.spec_from_file_location(name, pil.origin)
        return None


def install() -> None:
    """Puts the stand-ins in place, once in a process, where torchvision is missing."""
    if torchvision_missing() and not any(isinstance(finder, StandIns) for finder in sys.meta_path):
        sys.meta_path.insert(0, StandIns())


def torchvision_missing() -> bool:
    return importlib.util.find_spec("torchvision") is None
