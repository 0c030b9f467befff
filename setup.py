"""Metadata and dependencies; `pip install -e .[train,report,dev]` gives everything `make test` uses."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = ["deepspeed>=0.18.3,<0.20", "tyro>=1.0", "tensorboard>=2.16", "ninja>=1.11"]
REPORT = ["matplotlib>=3.9"]
DEV = [
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.15",
]
BENCH = [*REPORT, "pytest-benchmark>=5", "geoopt>=0.5"]  # peers that benchmarks/ compares with

setup(
    name="bioclip_hc",
    version="0.1.0",
    description="Training toolkit for hierarchical CLIP models in hyperbolic or Euclidean space",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["bioclip_hc", "bioclip_hc.*"]),
    package_data={"bioclip_hc": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "open_clip_torch>=3.2",
        "webdataset>=0.2.100",
        "braceexpand>=0.1.7",
        "safetensors>=0.5",
        "pillow>=11",
        'triton>=3.6; platform_system == "Linux"',
    ],
    extras_require={"train": TRAIN, "report": REPORT, "dev": DEV, "bench": BENCH, "all": TRAIN + REPORT + DEV},
    entry_points={"console_scripts": ["bioclip-hc=bioclip_hc.cli:main"]},
)
