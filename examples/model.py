"""What a variable names, as it is loaded: prints a model folder or a hub id.

    python examples/model.py runs/text/gpg_rs1-seed1/checkpoints/global_step_100 MODEL

A veRL checkpoint (FSDP) is merged by veRL's own merger, once, into the folder `merged` inside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = "a folder with a Hugging Face model, a veRL checkpoint (global_step_N, FSDP) or a hub id"


def resolve(model: str, variable: str) -> str:
    path = Path(model).expanduser()
    for folder in (path, path / "actor"):
        if (folder / "fsdp_config.json").is_file():
            return str(merge(folder, variable))
    if path.exists() and not (path / "config.json").is_file():
        raise SystemExit(f"{variable}={model}: it has no config.json; expected {KINDS}")
    from huggingface_hub.utils import logging
    from transformers import AutoConfig

    logging.set_verbosity_error()  # its retries, line by line
    try:
        AutoConfig.from_pretrained(path if path.exists() else model)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{variable}={model}: expected {KINDS}; found: {str(error).splitlines()[0]}") from None
    return str(path) if path.exists() else model


def merge(checkpoint: Path, variable: str) -> Path:
    merged = checkpoint / "merged"
    if merged.is_dir():
        return merged
    with tempfile.TemporaryDirectory(dir=checkpoint, prefix=".merged-") as temporary:
        work = Path(temporary) / "model"
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        done = subprocess.run(
            [*command, "--local_dir", str(checkpoint), "--target_dir", str(work)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{variable}={checkpoint}: veRL's merger failed:\n{done.stdout[-2000:]}")
        # The merger leaves a processor out, without a word, where it cannot be loaded; the checkpoint has its settings.
        for file in (checkpoint / "huggingface").iterdir():
            if not (work / file.name).exists():
                shutil.copy(file, work)
        os.replace(work, merged)
    return merged


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(resolve(*sys.argv[1:]))
