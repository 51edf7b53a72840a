"""What a variable names, as it is loaded: prints a model folder or a hub id.

    python examples/model.py runs/text/gpg_rs1-seed1/checkpoints/global_step_100 MODEL

A veRL checkpoint (FSDP) is exported once, into the folder `merged` inside it (`python -m gpg_verl export`).
"""

from __future__ import annotations

import sys
from pathlib import Path

KINDS = "a folder with a Hugging Face model, a veRL checkpoint (global_step_N, FSDP) or a hub id"


def resolve(model: str, variable: str) -> str:
    path = Path(model).expanduser()
    for folder in (path, path / "actor"):
        if (folder / "fsdp_config.json").is_file():
            return exported(folder, variable)
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


def exported(checkpoint: Path, variable: str) -> str:
    from gpg_verl.export import ExportError, export

    merged = checkpoint / "merged"
    try:
        for line in () if merged.is_dir() else export(checkpoint, merged):
            print(line, file=sys.stderr)
    except ExportError as error:
        raise SystemExit(f"{variable}={error}") from None
    return str(merged)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(resolve(*sys.argv[1:]))
