"""Starts real tiny runs of veRL as a user would, and reads what they log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny


def launch(run: Path, folder: Path, metrics: str, *overrides: str, **environment: str) -> subprocess.Popen:
    """Starts `main_ppo` in folder `run` on the tiny model and data in `folder`, in a session of its own.

    The log goes to `run`/`metrics`.log, the steps' metrics to `run`/`metrics`.jsonl.
    """
    run.mkdir(exist_ok=True)
    with (run / f"{metrics}.log").open("w") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "verl.trainer.main_ppo",
                *tiny.overrides(folder),
                f"trainer.default_local_dir={run}/checkpoints",
                f"trainer.validation_data_dir={run}/validation",
                "trainer.logger=[console,file]",
                *overrides,
            ],
            cwd=run,
            env={
                **{k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"},
                "VERL_FILE_LOGGER_PATH": str(run / f"{metrics}.jsonl"),
                **environment,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def read(file: Path) -> dict[int, dict]:
    """{step: metrics} of a metrics file, without the line that is being written."""
    complete, _, _ = file.read_text().rpartition("\n") if file.exists() else ("", "", "")
    return {row["step"]: row["data"] for row in map(json.loads, complete.splitlines())}
