"""What a run is made of, read once before Ray starts. Checks (checks.py) are functions of it."""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from gpg_verl.compat import versions
from gpg_verl.guards.checkpoints import named_ray
from gpg_verl.launch.data_files import Split, read_split
from gpg_verl.launch.prompts import PromptLengths, measure
from gpg_verl.launch.settle import Settled, settle

WORK_ELSEWHERE = "GPG_WORK_ELSEWHERE"


@dataclass
class Facts:
    """A run, as its checks see it.

    config: veRL's composed config, with what GPG implies once `settle` was called.
    overrides: what the user typed, as Hydra lists it; None where that is not known.
    train, val: the data files.
    model: what stands in the model's config.json; nothing of one that is not on this machine.
    tensor_shapes: of a local safetensors checkpoint, from the files' headers.
    remote_cluster: why the run's work is done on other machines; None where it is done here.
    """

    config: DictConfig
    overrides: list[str] | None
    train: Split
    val: Split
    model: dict[str, Any]
    tensor_shapes: list[list[int]]
    remote_cluster: str | None

    @classmethod
    def read(cls, config: DictConfig, overrides: list[str] | None = None) -> Facts:
        folder = model_folder(config)
        return cls(
            config,
            overrides,
            read_split(config, "train"),
            read_split(config, "val"),
            read_model_config(folder),
            read_tensor_shapes(folder),
            remote_cluster(config),
        )

    def get(self, key: str) -> Any:
        """A value of the config; None where it is not there or still to be given."""
        return OmegaConf.select(self.config, key, throw_on_missing=False)

    def settle(self) -> Settled:
        """Makes the config what GPG implies."""
        return settle(self.config, self.overrides, images=self.has_images and not self.dummy_loading_is_safe)

    @property
    def splits(self) -> tuple[Split, Split]:
        return self.train, self.val

    @property
    def own_data_class(self) -> bool:
        """A data set class of the user's own, which reads what it likes."""
        return bool(self.get("data.custom_cls.path"))

    @property
    def has_images(self) -> bool:
        """Whether prompts may hold images: the data has a column for them, or the model reads them. Without the
        network, so a hub's model with remote data is not known.
        """
        column = self.get("data.image_key") or "images"
        return any(column in file.features for split in self.splits for file in split.files) or (
            "vision_config" in self.model
        )

    @property
    def dummy_loading_is_safe(self) -> bool:
        """Whether veRL's dummy loading leaves nothing random that no weight sync brings: known of vLLM before 0.28,
        whose models of images have no such buffers.
        """
        if self.get("actor_rollout_ref.rollout.name") != "vllm" or self.remote_cluster:
            return False
        vllm = versions.found(versions.requirement("vllm"))
        return vllm is not None and Version(vllm[1]) < Version("0.28")

    @cached_property
    def prompt_lengths(self) -> dict[str, PromptLengths | str | None]:
        """Of each split by its key; see `measure`."""
        return {split.key: measure(self.config, self.model, split) for split in self.splits}


def model_folder(config: DictConfig) -> Path:
    """Where the model is, if it is on this machine."""
    return Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or ""))


def read_model_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_tensor_shapes(folder: Path) -> list[list[int]]:
    shapes = []
    for file in folder.glob("*.safetensors") if (folder / "config.json").is_file() else []:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        shapes += [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return shapes


def remote_cluster(config: DictConfig | None = None) -> str | None:
    """Why what this machine lacks says nothing about a run: its work is done on others. None where it is done here.

    A Ray that is named is one elsewhere; one that `ray start` left running here is joined too, and its workers may be
    on other nodes. `GPG_WORK_ELSEWHERE=1` says so where neither shows it, 0 that the work is done here all the same.
    """
    told = os.environ.get(WORK_ELSEWHERE)
    if told is not None:
        return f"{WORK_ELSEWHERE}={told}" if told not in ("", "0") else None
    address = named_ray(config)
    if address == "local":
        return None
    if address:
        return f"the run goes to the Ray at {address}"
    return f"the run joins the Ray that runs at {address}" if (address := _running_ray()) else None


def ray_folder() -> Path:
    """Where Ray on this machine keeps its logs, sockets and what its object store spills."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray")


def _running_ray() -> str | None:
    """The address of the Ray that `ray start` has left running on this machine, which `ray.init` would join."""
    try:
        address = (ray_folder() / "ray_current_cluster").read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None
    return address
