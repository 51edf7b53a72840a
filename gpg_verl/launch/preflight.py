"""The look at a run before Ray starts: settings, versions, data files, memory. One message, no traceback.

`before_ray` is called with veRL's composed config by `verl.trainer.main_ppo` (see hooks.py); `inspect` is the same
judgement for `python -m gpg_verl check`.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

import gpg_verl
from gpg_verl.compat import versions
from gpg_verl.guards import run_folder
from gpg_verl.guards.checkpoints import free_bytes, resume_problems, runs_elsewhere
from gpg_verl.guards.last_words import tell_the_end
from gpg_verl.launch.settle import REWARD_FNS, Settled, is_gpg, settle

REQUIRED_COLUMNS = ("data_source", "reward_model")

# Peak memory of a CPU run, fitted to what a model of 135M parameters took: Python processes, plus copies of the
# fp32 weights (trainer, gradient, two AdamW moments, vLLM with its packed copy, transfer), plus the KV cache.
CPU_BASE_BYTES = 7.5e9
CPU_WEIGHT_COPIES = 8


@dataclass
class Findings:
    """What stands against a run. `settings` are contradictions in the config; `files` and `machine` are about where it
    would run, and only a warning for `check`, which may run elsewhere."""

    settled: Settled | None = None
    settings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [*self.machine, *self.settings, *self.files]


def inspect(config: DictConfig, overrides: list[str] | None) -> Findings:
    """Settles what GPG implies in `config` and judges the whole. Never raises for something the user can mend."""
    findings = Findings(machine=version_problems(config))
    findings.settled = settle(config, overrides, images=has_images(config))
    findings.settings += findings.settled.contradictions
    findings.settings += missing_values(config)
    findings.files += model_problems(config)
    for split in ("train", "val"):
        findings.files += data_problems(config, split) or source_problems(config, split)
    findings.files += resume_problems(config)
    findings.machine += memory_problems(config)
    findings.machine += disk_problems(config)
    return findings


def before_ray(config: DictConfig, use_reference_policy: bool, use_critic: bool, validate_config) -> None:
    """Stands in for veRL's `validate_config` in the driver."""
    from gpg_verl.cpu import adopt

    adopt(config)
    if not is_gpg(config):
        return validate_config(config, use_reference_policy, use_critic)

    from verl.trainer.ppo.utils import need_critic, need_reference_policy

    findings = inspect(config, typed_overrides())
    findings.files += run_folder.claim(config)
    if findings.all():
        raise SystemExit(stop_message(findings.all()))
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError) as error:
        raise SystemExit(stop_message([f"veRL refuses the configuration: {error}"])) from None
    tell_the_end()
    print("\n".join(first_lines(findings.settled)), flush=True)


def stop_message(problems: list[str]) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"\ngpg_verl: this run cannot start.\n{lines}\n"


def first_lines(settled: Settled) -> list[str]:
    """What every GPG run says first: which implementation, which settings, what they imply."""
    import verl

    s = settled.settings
    lines = [
        f"gpg_verl {gpg_verl.__version__} ({Path(gpg_verl.__file__).parent}) on veRL {verl.__version__}: "
        f"adv_estimator=gpg with f_norm={s.f_norm} alpha={s.alpha} beta_th={s.beta_th:g} allow_kl={s.allow_kl}"
    ]
    if (version := versions.tried()) is not None:
        lines.append(f"gpg_verl: veRL {version} is tried ({versions.TRY_VERL}), written for is {versions.VERL}")
    lines += [f"gpg_verl: {c.key}={c.after} ({c.why})" for c in settled.changes]
    lines += [f"gpg_verl: {notice}" for notice in settled.notices]
    return lines


def typed_overrides() -> list[str] | None:
    """What the user typed, where Hydra composed the config; None otherwise."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def version_problems(config: DictConfig) -> list[str]:
    """What a run with this config cannot start with: a wrong Python or veRL, no vLLM where vLLM generates."""
    wrong = [versions.unsupported()]
    rollout = config.actor_rollout_ref.rollout
    if not OmegaConf.is_missing(rollout, "name") and rollout.name == "vllm":
        wrong += [versions.problem(package) for package in versions.PACKAGES if package.name == "vllm"]
    return [problem for problem in wrong if problem]


def missing_values(config: DictConfig) -> list[str]:
    """Settings that veRL needs and has no default for: it would stop deep inside Ray."""
    problems = []
    if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
        problems.append(
            "actor_rollout_ref.rollout.name is not set: say which engine generates, e.g. "
            "actor_rollout_ref.rollout.name=vllm"
        )
    actor = config.actor_rollout_ref.actor
    if not actor.use_dynamic_bsz:
        for key in (
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        ):
            if OmegaConf.select(config, key) is None:
                problems.append(
                    f"{key} is not set: give a number of rows, or set actor_rollout_ref.actor.use_dynamic_bsz=True"
                )
    return problems


def model_problems(config: DictConfig) -> list[str]:
    path = OmegaConf.select(config, "actor_rollout_ref.model.path")
    if not path:
        return ["actor_rollout_ref.model.path is not set: give a folder with a Hugging Face model, or a hub id"]
    folder = Path(os.path.expanduser(path))
    looks_local = path.startswith(("/", ".", "~")) or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        found = "no such folder" if not folder.exists() else "a folder without config.json"
        return [f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found {found}"]
    return []


def has_images(config: DictConfig) -> bool:
    """Whether prompts may hold images: the data has a column for them, or the model reads them. Without the network, so
    a hub's model with remote data is not known.
    """
    image_key = OmegaConf.select(config, "data.image_key") or "images"
    for split in ("train", "val"):
        given = OmegaConf.select(config, f"data.{split}_files")
        for name in list(given) if isinstance(given, ListConfig | list) else [given]:
            try:
                columns = _look_into(Path(os.path.expanduser(str(name))), config.data.prompt_key)[0]
            except _Unreadable:
                continue  # remote, or reported by data_problems
            if image_key in columns:
                return True
    file = Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or "")) / "config.json"
    try:
        return "vision_config" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # on the hub, or reported by model_problems


def data_problems(config: DictConfig, split: str) -> list[str]:
    """What is wrong with the files of `data.{split}_files`: missing, unreadable, without a column, too few rows."""
    key = f"data.{split}_files"
    given = OmegaConf.select(config, key)
    files = list(given) if isinstance(given, ListConfig | list) else [given]
    if OmegaConf.select(config, "data.custom_cls.path"):
        return []  # the user's own data set class reads what it likes
    problems: list[str] = []
    rows = 0
    for name in files:
        if not isinstance(name, str) or not name:
            problems.append(f"{key}={given}: expected the path of a parquet or jsonl file in veRL's format")
            continue
        if "://" in name:
            return problems  # remote, read by veRL
        try:
            columns, count, malformed = _look_into(Path(os.path.expanduser(name)), config.data.prompt_key)
        except _Unreadable as error:
            problems.append(f"{key}: {name}: {error}")
            continue
        rows += count
        wanted = (config.data.prompt_key, *REQUIRED_COLUMNS)
        absent = [column for column in wanted if column not in columns]
        if absent:
            problems.append(
                f"{key}: {name}: expected the columns {', '.join(wanted)}, without {', '.join(absent)} "
                f"(found {', '.join(columns)}); veRL's format is described in its docs under 'Prepare data'"
            )
        elif malformed:
            problems.append(f"{key}: {name}: {malformed}")
    if split == "train" and not problems and rows < config.data.train_batch_size:
        problems.append(
            f"{key}: {rows} rows are fewer than data.train_batch_size={config.data.train_batch_size}: no step could be "
            "filled; use more rows or a smaller batch"
        )
    return problems


def source_problems(config: DictConfig, split: str) -> list[str]:
    """Data sources of sound files for which `reward_fns`, where it is what scores, has no entry: the first of each."""
    if OmegaConf.select(config, "reward.custom_reward_function.path") != REWARD_FNS:
        return []
    if OmegaConf.select(config, "data.custom_cls.path"):
        return []
    import pandas as pd

    from reward_fns.sources import UnknownDataSource, task_of

    given = OmegaConf.select(config, f"data.{split}_files")
    problems = []
    for name in list(given) if isinstance(given, ListConfig | list) else [given]:
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            continue  # remote
        if path.suffix == ".parquet":
            sources = pd.read_parquet(path, columns=["data_source"])["data_source"]
        else:
            sources = pd.read_json(path, lines=True)["data_source"]
        for source in sources.unique():
            try:
                task_of(source)
            except UnknownDataSource as error:
                problems.append(f"data.{split}_files: {name}: {error}")
                break
    return problems


class _Unreadable(Exception):
    pass


def _look_into(path: Path, prompt_key: str) -> tuple[list[str], int, str | None]:
    """(columns, rows, what is malformed in the columns that veRL reads) of a data file; raises _Unreadable."""
    if not path.is_file():
        raise _Unreadable("no such file; make it, or correct the path")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns, count = file.schema_arrow.names, file.metadata.num_rows
                wanted = [column for column in (prompt_key, "reward_model") if column in columns]
                first = next(file.iter_batches(1, columns=wanted)).to_pylist()[0] if count else {}
        except (pyarrow.ArrowException, OSError) as error:
            raise _Unreadable(f"not a readable parquet file ({error}); write it again") from None
        return columns, count, _malformed(first, prompt_key)
    if path.suffix in (".json", ".jsonl"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            line = lines.readline()
            count = 1 + sum(1 for line in lines if line.strip())
        try:
            first = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise _Unreadable(f"line 1 is not a JSON object ({error}); write one object a line") from None
        return list(first), count, _malformed(first, prompt_key)
    raise _Unreadable(f"veRL reads .parquet, .json and .jsonl, not {path.suffix or 'a file without suffix'}")


def _malformed(row: dict, prompt_key: str) -> str | None:
    """What veRL could not use in a row, judged by the first one."""
    prompt = row.get(prompt_key)
    if prompt_key in row and not (isinstance(prompt, list) and prompt and all("role" in m for m in prompt)):
        return (
            f"column {prompt_key} holds {str(prompt)[:60]!r}, expected a list of messages "
            '[{"role": "user", "content": "..."}]'
        )
    gold = row.get("reward_model")
    if "reward_model" in row and not (isinstance(gold, dict) and "ground_truth" in gold):
        return f'column reward_model holds {str(gold)[:60]!r}, expected {{"style": "rule", "ground_truth": "..."}}'
    return None


def memory_problems(config: DictConfig) -> list[str]:
    """What a CPU run has too little memory for, where the kernel would kill a worker without a word, or a weight bucket
    of shared memory would be too small in the first sync. On GPUs veRL and CUDA say so themselves.
    """
    if OmegaConf.select(config, "trainer.device") != "cpu":
        return []
    import psutil

    problems = []
    shapes = _shapes(config)
    available, needed = psutil.virtual_memory().available, cpu_bytes_needed(config, shapes)
    if available < needed:
        problems.append(
            f"too little memory: this run needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
            "use a smaller model, or free memory"
        )
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    largest = max((math.prod(shape) * 4 for shape in shapes), default=0)
    if largest > OmegaConf.select(config, key) << 20:
        problems.append(
            f"{key}={OmegaConf.select(config, key)}: the model's largest tensor has {largest / 2**20:.0f} MB in fp32 "
            f"and must fit; set {key}={math.ceil(largest / 2**20)} or more"
        )
    return problems


def cpu_bytes_needed(config: DictConfig, shapes: list[list[int]]) -> float:
    """Peak memory of a CPU run, in bytes."""
    kv_cache = OmegaConf.select(config, "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes") or 0
    return CPU_BASE_BYTES + CPU_WEIGHT_COPIES * 4 * sum(map(math.prod, shapes)) + kv_cache


def disk_problems(config: DictConfig) -> list[str]:
    """Too little room for the first checkpoint, which would end the run hours later. Counted are the weights of a local
    model and AdamW's two moments of them; adapters save less, and several machines may have disks of their own.
    """
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    model = config.actor_rollout_ref.model
    adapters = model.get("lora_rank") or OmegaConf.select(model, "lora.rank") or model.get("lora_adapter_path")
    if trainer.save_freq <= 0 or trainer.nnodes > 1 or runs_elsewhere(config) or adapters:
        return []
    if actor.strategy not in ("fsdp", "fsdp2"):
        return []
    contents = actor.checkpoint.save_contents
    width = 4 if actor.fsdp_config.model_dtype in ("fp32", "float32") else 2
    copies = ("model" in contents) + 2 * ("optimizer" in contents and actor.optim.optimizer == "AdamW")
    needed = copies * width * sum(map(math.prod, _shapes(config)))
    directory = Path(trainer.default_local_dir)
    if (free := free_bytes(directory)) < needed:
        return [
            f"trainer.default_local_dir={directory}: a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
            "free; make room, or save elsewhere"
        ]
    return []


def _shapes(config: DictConfig) -> list[list[int]]:
    """The shapes of a local safetensors checkpoint, from the files' headers; none where there is no such folder."""
    folder = Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or ""))
    shapes = []
    for file in folder.glob("*.safetensors") if folder.is_dir() else []:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        shapes += [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return shapes
