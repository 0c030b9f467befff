"""Compile csrc/cuda into bioclip_hc/kernels/libbioclip_hc_cuda.so: python csrc/cuda/build.py

Needs nvcc and a C++ compiler that nvcc accepts; no torch, no GPU. The library has machine code for sm_80 and sm_90,
and PTX for what is newer; the CUDA runtime is inside, so that any driver that runs torch runs it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER.parents[1] / "bioclip_hc" / "kernels" / "libbioclip_hc_cuda.so"
SOURCES = ("prepare.cu", "to_inputs.cu")
ARCHITECTURES = (80, 90)  # A100 and H100
OLDEST_NVCC = (11, 8)  # the first that knows sm_90


class Kernel(NamedTuple):
    """What ptxas says of one kernel as compiled for one architecture."""

    name: str  # mangled
    arch: int
    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread
    spills: int  # bytes stored to it for want of registers, and loaded
    shared: int  # bytes of a block


def find_nvcc() -> str:
    """nvcc by CUDA_HOME, CUDA_PATH or PATH, or where CUDA installs itself.

    Raises:
        RuntimeError: none of them has it.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    search = [os.path.join(home, "bin") for home in homes]
    search += [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(search))
    if found is None:
        raise RuntimeError(
            "nvcc is neither on PATH nor under CUDA_HOME nor in /usr/local/cuda/bin; install the CUDA toolkit "
            f"({_version_name(OLDEST_NVCC)} or newer), or set CUDA_HOME to where it is"
        )
    return found


def build(out: Path = LIBRARY, nvcc: str | None = None) -> list[Kernel]:
    """Compile the library to `out`, which appears whole or not at all.

    Args:
        nvcc: the compiler; None = `find_nvcc`.

    Raises:
        RuntimeError: no nvcc, one too old, or what it said when it failed.
    """
    nvcc = nvcc or find_nvcc()
    _require_version(nvcc)
    codes = [f"arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES[:-1]]
    newest = ARCHITECTURES[-1]
    codes.append(f"arch=compute_{newest},code=[sm_{newest},compute_{newest}]")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / out.name
        log = _run(
            nvcc, "-O3", "-std=c++17", "-shared", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden",
            "-Xptxas", "-v", "--threads", str(min(4, os.cpu_count() or 1)),
            *(word for code in codes for word in ("-gencode", code)),
            *(str(FOLDER / source) for source in SOURCES), "-o", str(made),
        )  # fmt: skip
        os.replace(made, out)
    return list(read_ptxas(log))


def read_ptxas(log: str) -> Iterator[Kernel]:
    """The kernels that a log of `-Xptxas -v` tells of."""
    parts = re.split(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", log)
    for name, arch, said in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        stack, stored, loaded = _numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said
        )
        (registers,) = _numbers(r"Used (\d+) registers", said)
        shared = re.search(r"(\d+) bytes smem", said)
        yield Kernel(
            name, int(arch), registers, stack, stored + loaded, int(shared[1]) if shared else 0
        )  # fmt: skip


def _numbers(pattern: str, said: str) -> list[int]:
    found = re.search(pattern, said)
    if found is None:
        raise RuntimeError(f"ptxas did not say {pattern!r}, but:{said}")
    return [int(number) for number in found.groups()]


def _require_version(nvcc: str) -> None:
    release = re.search(r"release (\d+)\.(\d+)", _run(nvcc, "--version"))
    if release is None or (int(release[1]), int(release[2])) < OLDEST_NVCC:
        raise RuntimeError(
            f"{nvcc} is of CUDA {_version_name(release.groups()) if release else '(it does not say)'}; sm_90 needs "
            f"{_version_name(OLDEST_NVCC)} or newer: put a newer nvcc on PATH, or set CUDA_HOME"
        )


def _version_name(version: tuple[object, ...]) -> str:
    return ".".join(str(number) for number in version)


def _run(*command: str) -> str:
    """What a command said. Raises RuntimeError with it where the command fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise RuntimeError(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main() -> None:
    """Build, and say what was built."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=LIBRARY, help="default: into the package")
    options.add_argument("--nvcc", help="default: by CUDA_HOME and PATH")
    chosen = options.parse_args()
    start = time.perf_counter()
    try:
        kernels = build(chosen.out, chosen.nvcc)
    except RuntimeError as error:
        sys.exit(str(error))
    print(
        f"{chosen.out}: {chosen.out.stat().st_size / 2**20:.1f} MiB in {time.perf_counter() - start:.1f} s; "
        f"{len(kernels)} kernels for {' and '.join(f'sm_{arch}' for arch in ARCHITECTURES)}, at most "
        f"{max(k.registers for k in kernels)} registers, {sum(k.spills for k in kernels)} bytes of spills"
    )


if __name__ == "__main__":
    main()
