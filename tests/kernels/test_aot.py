"""Kernels of level_infonce compile for sm_80 and sm_90 without spilling, on tensor cores, without a GPU.

The 16-bit ones here; `make aot` compiles every shipped configuration.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", ["lorentz, multi_positive, 16", "euclidean, multi_positive, 16"])
def test_shipped_16_bit_kernels_fit_the_hardware(case):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "benchmarks" / "aot.py", "--only", case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    for arch in (80, 90):
        for kernel in ("forward", "recompute", "add_row_gradient", "add_column_gradient"):
            assert f"| {kernel}_kernel | {case} | {arch} |" in done.stdout
