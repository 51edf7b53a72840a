"""What a run is made of, each part read once before Ray starts. Checks (checks.py) are functions of it."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from gpg_verl.compat import versions
from gpg_verl.guards.checkpoints import named_ray
from gpg_verl.launch.data_files import Split, read_split
from gpg_verl.launch.settle import REWARD_MANAGER

WORK_ELSEWHERE = "GPG_WORK_ELSEWHERE"


class Advice(str):
    """A message that stops no run."""

    __slots__ = ()


@dataclass
class Facts:
    """A run by veRL's composed config, as its checks see it."""

    config: DictConfig

    def get(self, key: str) -> Any:
        """A value of the config; None where it is not there or still to be given."""
        return OmegaConf.select(self.config, key, throw_on_missing=False)

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The training and the validation data; none where a data set class of the user's own reads what it likes."""
        if self.get("data.custom_cls.path"):
            return ()
        return read_split(self.config, "train"), read_split(self.config, "val")

    @cached_property
    def folder(self) -> Path:
        """Where the model is, if it is on this machine."""
        return Path(os.path.expanduser(self.get("actor_rollout_ref.model.path") or ""))

    @cached_property
    def model(self) -> dict[str, Any]:
        """What stands in the model's config.json; nothing of one that is not on this machine."""
        try:
            return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    @cached_property
    def tensor_shapes(self) -> list[list[int]]:
        """Of a local safetensors checkpoint, from the files' headers."""
        from safetensors import safe_open

        shapes = []
        for file in self.folder.glob("*.safetensors") if self.model else ():
            with safe_open(file, "numpy") as tensors:
                shapes += [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        return shapes

    @cached_property
    def remote_cluster(self) -> str | None:
        """Why the run's work is done on other machines; None where it is done here."""
        return remote_cluster(self.config)

    @property
    def known_reward_manager(self) -> bool:
        """Whether what scores is called by a reward manager of veRL's, or by ours."""
        ours = self.get("reward.reward_manager.module.path") == REWARD_MANAGER["module.path"]
        return ours or self.get("reward.reward_manager.source") == "register"

    @property
    def has_images(self) -> bool:
        """Whether prompts may hold images: the data has a column for them, or the model reads them. Without the
        network, so a hub's model with remote data is not known.
        """
        column = self.get("data.image_key") or "images"
        return "vision_config" in self.model or any(column in f.features for split in self.splits for f in split.files)

    @property
    def dummy_loading_is_safe(self) -> bool:
        """Whether veRL's dummy loading leaves nothing random that no weight sync brings: known of vLLM before 0.28,
        whose models of images have no such buffers.
        """
        vllm = versions.found(versions.requirement("vllm"))
        here = self.get("actor_rollout_ref.rollout.name") == "vllm" and not self.remote_cluster
        return here and vllm is not None and Version(vllm[1]) < Version("0.28")


def remote_cluster(config: DictConfig | None = None) -> str | None:
    """Why what this machine lacks says nothing about a run: its work is done on others. None where it is done here.

    A Ray that is named is one elsewhere; one that `ray start` left running here is joined too, and its workers may be
    on other nodes. `GPG_WORK_ELSEWHERE=1` says so where neither shows it, 0 that the work is done here all the same.
    """
    told = os.environ.get(WORK_ELSEWHERE)
    if told is not None:
        return f"{WORK_ELSEWHERE}={told}" if told not in ("", "0") else None
    if address := named_ray(config):
        return f"the run goes to the Ray at {address}" if address != "local" else None
    try:
        address = (ray_folder() / "ray_current_cluster").read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None
    return f"the run joins the Ray that runs at {address}"


def ray_folder() -> Path:
    """Where Ray on this machine keeps its logs, sockets and what its object store spills."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray")
