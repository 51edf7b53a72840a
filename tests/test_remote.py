"""Paths with a scheme, in each place where a run has one: taken by veRL, or named before Ray starts."""

from __future__ import annotations

import pytest
import tiny

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch.check import compose
from gpg_verl.launch.preflight import look
from gpg_verl.launch.remote import relative_folder, remote_problems

FOLDER = "veRL takes this for a folder called s3: of each machine"
REFUSED = {
    "trainer.default_local_dir=s3://b/run": FOLDER,
    "trainer.validation_data_dir=s3://b/run": FOLDER,
    "trainer.rollout_data_dir=s3://b/run": FOLDER,
    "trainer.resume_mode=resume_path trainer.resume_from_path=s3://b/global_step_2": FOLDER,
    "actor_rollout_ref.model.path=s3://b/model": "veRL loads a folder, a hub's name or hdfs://",
    "data.train_files=abc://b/train.parquet": "data.train_files=abc://b/train.parquet: Protocol not known: abc",
    "trainer.save_freq=1 trainer.default_hdfs_dir=hdfs://b/run": "with actor.strategy=fsdp2 veRL copies nothing there",
}
NOT_HERE = {
    "actor_rollout_ref.model.path=hdfs://b/model": "fetches it by the command hdfs, which is not on the PATH",
    "data.val_files=[hdfs://b/a.parquet]": "data.val_files=hdfs://b/a.parquet: veRL fetches it by the command hdfs",
    "data.train_files=gs://b/train.parquet": "install gcsfs",
}
TAKEN = [
    "data.train_files=https://host/train.parquet",
    "trainer.resume_from_path=s3://b/global_step_2",  # not read
    "trainer.default_hdfs_dir=hdfs://b/run",  # nothing is saved
    "data.custom_cls.path=pkg://mine data.train_files=abc://rows",
    "trainer.default_local_dir=/shared/run",
]


@pytest.fixture(scope="module")
def config(tiny_folder):
    import verl  # noqa: F401  loads the plugin

    overrides = tiny.overrides(tiny_folder)
    return lambda more="": compose([*overrides, "actor_rollout_ref.actor.strategy=fsdp2", *more.split()])


@pytest.mark.parametrize(("more", "said"), [*REFUSED.items(), *NOT_HERE.items()])
def test_what_verl_does_not_take_is_named(config, monkeypatch, more, said):
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = remote_problems(config(more))
    assert said in problem
    assert isinstance(problem, LocalProblem) == (more in NOT_HERE)


@pytest.mark.parametrize("more", TAKEN)
def test_what_verl_takes_goes_through(config, more):
    assert remote_problems(config(more)) == []


def test_with_the_command_hdfs_is_verls(config, monkeypatch, tmp_path):
    (tmp_path / "hdfs").write_text("#!/bin/sh\n")
    (tmp_path / "hdfs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all(remote_problems(config(more)) == [] for more in NOT_HERE if "hdfs" in more)


def test_no_folder_is_made_for_a_bucket(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overrides = "trainer.save_freq=1 trainer.default_local_dir=s3://b/run"
    findings = look(config(overrides), overrides.split(), claim=True)
    assert any(FOLDER in problem for problem in findings.settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("address", "folder", "warned"), [
    ("10.0.0.1:6379", "runs/a", True),
    ("10.0.0.1:6379", "/shared/a", False),
    ("", "runs/a", False),
])  # fmt: skip
def test_a_relative_folder_on_a_cluster_is_warned_of(config, monkeypatch, address, folder, warned):
    monkeypatch.setenv("RAY_ADDRESS", address)
    warnings = relative_folder(config(f"trainer.save_freq=1 trainer.default_local_dir={folder}"))
    assert any("is relative" in warning for warning in warnings) == warned
