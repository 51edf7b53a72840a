"""The README's veRL command is one that composes, implies what the README says and contradicts nothing."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from gpg_verl.check import compose, veto_of_verl
from gpg_verl.preflight import inspect

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_full_command_is_sound():
    import verl  # noqa: F401

    (command,) = re.findall(r"```bash\n(python -m verl\.trainer\.main_ppo \\\n.*?)```", README, flags=re.DOTALL)
    overrides = shlex.split(os.path.expandvars(command.replace("\\\n", " ")))[3:]
    assert "actor_rollout_ref.rollout.n=8" in overrides
    config = compose(overrides)
    findings = inspect(config, overrides)
    assert findings.settings == []
    assert findings.settled.notices == []
    assert veto_of_verl(config) == []
    for change in findings.settled.changes:
        assert f"`{change.key}`" in README
