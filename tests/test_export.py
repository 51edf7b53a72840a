"""`python -m gpg_verl export`, on checkpoints that veRL's own manager wrote."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from conftest import run_python
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from gpg_verl.__main__ import main
from gpg_verl.export import log_probs

# Writes a checkpoint of a trained model, each rank its part, and what the model computes.
SAVE = """
import os, sys
import peft, torch, torch.distributed as dist, torch.multiprocessing as mp
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

def work(rank, ranks, source, out, port):
    torch.set_num_threads(1)  # else transformers' threads race for a thread pool that did not survive the fork
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for kind in ("full", "bf16", "lora", "lora_only"):
        save(kind, rank, ranks, source, f"{out}/{kind}-{ranks}")
    dist.destroy_process_group()


def save(kind, rank, ranks, source, out):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    if "lora" in kind:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=32, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
        text = torch.randint(model.config.vocab_size, (1, 30), generator=torch.manual_seed(3))
        logits = model.eval()(input_ids=text).logits[0, :-1].float()
    if rank == 0:
        torch.save((text, logits.log_softmax(-1).gather(-1, text[0, 1:, None]).squeeze(-1)), out + ".pt")
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",)))
    contents = {"save_contents": ["model"], "load_contents": ["model"]}
    saving = OmegaConf.create(contents | {"save_lora_only": kind == "lora_only"})
    tokenizer = AutoTokenizer.from_pretrained(source)
    FSDPCheckpointManager(model, processing_class=tokenizer, checkpoint_config=saving).save_checkpoint(out + "/actor")

if __name__ == "__main__":
    for ranks in (1, 2):
        mp.start_processes(work, (ranks, *sys.argv[1:4]), ranks, start_method="fork")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_folder) -> Path:
    """A tiny model with tied embeddings, with sizes that two ranks do not divide."""
    folder = tmp_path_factory.mktemp("export") / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder / "model")
    sizes = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(base) -> Path:
    script, out = base.parent / "save.py", base.parent / "checkpoints"
    out.mkdir()
    script.write_text(SAVE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run_python(str(script), str(base), str(out), str(port), cwd=base.parent, VERL_PLATFORM="cpu")
    assert done.returncode == 0, done.stdout
    return out


@pytest.mark.parametrize(("ranks", "kind"), [(1, "full"), (2, "full"), (1, "lora"), (2, "lora"), (2, "lora_only")])
def test_a_folder_computes_what_was_trained(base, checkpoints, tmp_path, capsys, ranks, kind):
    checkpoint = checkpoints / f"{kind}-{ranks}"
    more = ["--base", str(base)] if kind == "lora_only" else []
    assert main(["export", str(checkpoint), str(tmp_path / "model"), *more]) == 0, capsys.readouterr().out
    text, trained = torch.load(f"{checkpoint}.pt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (log_probs(model, text) - trained).abs().max() < 1e-5
    untrained = AutoModelForCausalLM.from_pretrained(base)
    assert (log_probs(untrained, text) - trained).abs().max() > 1e-2
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab()
    assert "log-probs of 64 random tokens differ by at most" in capsys.readouterr().out


def test_what_was_trained_in_bf16_stays_bf16(checkpoints, tmp_path):
    assert main(["export", str(checkpoints / "bf16-1" / "actor"), str(tmp_path / "model")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16


def harm(folder: Path, what: str) -> None:
    actor = folder / "actor"
    if what == "a rank's file":
        (actor / "model_world_size_2_rank_1.pt").unlink()
    elif what == "cut":
        file = actor / "model_world_size_2_rank_1.pt"
        file.write_bytes(file.read_bytes()[:1000])
    elif what == "alpha":
        (actor / "lora_train_meta.json").unlink()
    elif what == "other engine":
        (actor / "fsdp_config.json").unlink()


@pytest.mark.parametrize(
    ("kind", "what", "message"),
    [
        ("full", "a rank's file", "model_world_size_2_rank_1.pt missing; every rank's file must be in this folder"),
        ("full", "cut", "a shard cannot be read"),
        ("full", "other engine", "expected a veRL checkpoint of FSDP, global_step_N with actor/fsdp_config.json"),
        ("lora", "alpha", "lora_train_meta.json: expected r and lora_alpha"),
        ("lora_only", "nothing", "it holds the adapter alone, and the model under it is not known. Name it: --base"),
    ],
)
def test_a_checkpoint_that_cannot_be_exported_is_named(checkpoints, tmp_path, capsys, monkeypatch, kind, what, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(checkpoints / f"{kind}-2", tmp_path / "checkpoint")
    harm(tmp_path / "checkpoint", what)
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "model")]) == 1
    assert message in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


def test_a_folder_that_differs_is_not_left(checkpoints, tmp_path, capsys, monkeypatch):
    save = Qwen2ForCausalLM.save_pretrained

    def other(self, folder):
        self.model.norm.weight.data *= 1.5
        save(self, folder)

    monkeypatch.setattr(Qwen2ForCausalLM, "save_pretrained", other)
    assert main(["export", str(checkpoints / "full-1"), str(tmp_path / "model")]) == 1
    assert "log-probs of the written model differ by up to" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_a_run_is_no_step(checkpoints, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    assert main(["export", str(checkpoints / "full-1"), str(tmp_path / "model")]) == 1
    assert "is there already; name a new folder" in capsys.readouterr().out
    (tmp_path / "run" / "global_step_9").mkdir(parents=True)
    (tmp_path / "run" / "global_step_10").mkdir()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "new")]) == 1
    assert "in it is global_step_10: name that" in capsys.readouterr().out
