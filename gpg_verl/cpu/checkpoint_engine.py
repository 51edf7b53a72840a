"""How `separate_async` gets the trainer's weights to its rollout servers without an accelerator, where veRL has nccl,
nixl and others: through files, on one machine. The preset names this module in veRL's seam for it,
`custom_backend_module`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import torch
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from gpg_verl.cpu.verl_patches import sync_stopped, weight_sync_seconds


@CheckpointEngineRegistry.register("files")
class FilesCheckpointEngine(CheckpointEngine):
    """One file a tensor, by the trainer's first rank; every rollout worker reads it while the next is written."""

    def __init__(self, bucket_size: int, is_master: bool = False):
        self.is_master = is_master
        self.folder: Path | None = None

    def prepare(self) -> str | None:
        return tempfile.mkdtemp(prefix="gpg_weights_") if self.is_master else None

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list):
        folder = next(filter(None, metadata))
        return {"folder": [folder] * actor_wg_world_size}, {"folder": [folder] * rollout_world_size}

    def init_process_group(self, **kwargs) -> None:
        self.folder = Path(kwargs["folder"])

    def finalize(self) -> None:
        if self.is_master:
            shutil.rmtree(self.folder)

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        number = 0
        for name, weight in weights:  # every rank has to ask for them: they are gathered from all
            if self.is_master:
                self._put(number, (name, weight.detach()))
            number += 1
        if self.is_master:
            self._put(number, None)

    def _put(self, number: int, item: tuple[str, torch.Tensor] | None) -> None:
        torch.save(item, self.folder / f"{number}.part")
        (self.folder / f"{number}.part").rename(self.folder / str(number))

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        number, last = 0, time.monotonic()
        while True:
            file = self.folder / str(number)
            if file.exists():
                item = torch.load(file, weights_only=True)
                if item is None:
                    return
                yield item
                number, last = number + 1, time.monotonic()
            elif time.monotonic() - last > weight_sync_seconds():
                raise sync_stopped(f"the trainer did not write {file}")
            else:
                await asyncio.sleep(0.01)
