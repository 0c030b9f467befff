"""Metadata and dependencies; `pip install -e .[train,report,dev]` gives everything `make test` uses."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TRAIN = ["deepspeed>=0.18.3,<0.20", "tyro>=1.0", "tensorboard>=2.16", "ninja>=1.11"]
REPORT = ["matplotlib>=3.9"]
PARQUET = ["pyarrow>=17"]  # tables of benchmarks, and of predictions
DEV = [
    *PARQUET,
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.15",
    "scikit-learn>=1.5",  # this and the next: independent implementations that tests compare the metrics with
    "hiclass>=5",
]
FUZZ = ["atheris>=3.0"]  # libFuzzer for Python; `make fuzz` alone needs it
BENCH = [*REPORT, "pytest-benchmark>=5", "geoopt>=0.5"]  # peers that benchmarks/ compares with

CPU = Path("csrc/cpu")  # relative, as setuptools wants sources
CPU_LIBRARY = "bioclip_hc.kernels.libbioclip_hc_cpu"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]
# kernels.cpp is compiled once per instruction set; dispatch.cpp asks the processor
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]


class BuildLibrary(build_ext):
    """Compiles csrc/cpu, which needs a C++ compiler and nothing else. Without one the package installs too."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # of an earlier build: it would outlive the sources that it was made from
        try:
            compile_library(library, Path(self.build_temp))
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", "") or ""
            print(
                f"bioclip_hc: {library.name} was not built ({error}); its kernels will run on plain torch, slower. "
                f"`bioclip-hc doctor` says so too.\n{output[-2000:]}",
                file=sys.stderr,
            )

    def get_ext_filename(self, fullname: str) -> str:
        return (
            str(Path(*fullname.split("."))) + ".so"
        )  # loaded by path, not imported: no Python version in its name

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


class OneWheelForAllPythons(bdist_wheel):
    """The library is no Python extension: one wheel serves every Python and every torch."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def compile_library(library: Path, temporary: Path) -> None:
    """Compile csrc/cpu, one process a file, and link it; $CXXFLAGS are passed on.

    Raises:
        OSError: no compiler; $CXX, or c++.
        CalledProcessError: it failed.
    """
    compiler = (os.environ.get("CXX") or "c++").split()
    extra = os.environ.get("CXXFLAGS", "").split()
    temporary.mkdir(parents=True, exist_ok=True)
    jobs = [("kernels", name, [f"-DINSTRUCTION_SET={name}", *flags]) for name, flags in INSTRUCTION_SETS.items()]
    jobs += [("dispatch", "", []), ("parallel", "", [])]

    def compile_one(job: tuple[str, str, list[str]]) -> str:
        source, name, flags = job
        target = str(temporary / f"{source}{name}.o")
        run([*compiler, *FLAGS, *extra, *flags, "-c", str(CPU / f"{source}.cpp"), "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    run([*compiler, "-shared", *extra, *objects, "-o", str(library), "-pthread"])


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


setup(
    name="bioclip_hc",
    version="0.1.0",
    description="Training toolkit for hierarchical CLIP models in hyperbolic or Euclidean space",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["bioclip_hc", "bioclip_hc.*"]),
    package_data={"bioclip_hc": ["py.typed", "evaluation/published.toml"]},
    ext_modules=[
        Extension(
            CPU_LIBRARY,
            optional=True,  # else an editable install fails where there is nothing to copy
            sources=[str(CPU / f"{name}.cpp") for name in ("kernels", "dispatch", "parallel")],
            depends=sorted(
                str(path) for path in Path("csrc").rglob("*") if path.is_file()
            ),  # what an sdist holds too
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": OneWheelForAllPythons},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "open_clip_torch>=3.2",
        "webdataset>=0.2.100",
        "braceexpand>=0.1.7",
        "huggingface_hub>=0.30",  # shards on the hub
        "fsspec>=2023.5",  # shards in object stores
        "filelock>=3.10",
        "tqdm>=4.60",
        "safetensors>=0.5",
        "pillow>=11",
        'simplejpeg>=1.8; platform_system == "Linux" and platform_machine in "x86_64 aarch64"',
        'triton>=3.6; platform_system == "Linux"',
    ],
    extras_require={
        "train": TRAIN,
        "report": REPORT,
        "parquet": PARQUET,
        "dev": DEV,
        "bench": BENCH,
        "fuzz": FUZZ,
        "all": TRAIN + REPORT + PARQUET + DEV,
    },
    entry_points={"console_scripts": ["bioclip-hc=bioclip_hc.cli:main"]},
)
