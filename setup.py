"""gpg-verl: Group Policy Gradient (GPG) for veRL."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "gpg_verl/__init__.py").read_text()).group(1)

setup(
    name="gpg-verl",
    version=version,
    description="Group Policy Gradient (GPG) for veRL: exact, cheap, one word",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["gpg_verl", "gpg_verl.*", "reward_fns", "reward_fns.*"]),
    package_data={"gpg_verl": ["presets/*/*.yaml"]},
    install_requires=[
        "verl==0.9.1",
        "TransferQueue>=0.1.10",
        "hydra-core>=1.3",
        "math-verify>=0.8",
        "numpy>=2.0",
        "omegaconf>=2.3",
        "packaging>=20.0",
        "pandas",
        "psutil",
        "pyarrow>=19.0",
        "rich>=13",
        "wrapt>=1.16",
    ],
    extras_require={
        # veRL's own pins for vLLM and torch. A CPU needs requirements-cpu.txt instead: vLLM's CPU build names
        # companions that have no CPU build, which an extra cannot leave out.
        "gpu": ["verl[vllm]==0.9.1", "matplotlib"],
        "report": ["matplotlib", "tensorboard"],
        "masks": ["pillow", "transformers>=5.5"],  # LISA's mask metrics, by SAM
        "test": ["hypothesis>=6", "pytest>=8", "ruff==0.17.6"],
    },
    entry_points={
        "verl.plugins": ["gpg_verl = gpg_verl.plugin"],
        "vllm.general_plugins": ["gpg_verl_cpu = gpg_verl.cpu.vllm_patches:install"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
