"""GPU kernels compile for sm_80 and sm_90 without spilling, on tensor cores, without a GPU.

Some in 16 bit here; `make aot` compiles every shipped configuration.
"""

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "aot.py"
LEVEL_INFONCE = ("forward", "recompute", "add_row_gradient", "add_column_gradient")
CASES = {
    "lorentz, multi_positive, 16": LEVEL_INFONCE,
    "euclidean, multi_positive, 16": LEVEL_INFONCE,
    "lorentz_inner, 16": ("inner",),
    "lorentz, top 5, 16": ("walk",),
    "lorentz, top 5, candidates, 16": ("walk_lists",),
    "exp_map0 backward, 16": ("map_backward",),
}


@pytest.mark.parametrize("case", CASES)
def test_shipped_16_bit_kernels_fit_the_hardware(case):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, COMMAND, "--all", "--only", case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    for arch in (80, 90):
        for kernel in CASES[case]:
            assert f"| {kernel} | {case} | {arch} |" in done.stdout


def test_what_spills_or_leaves_tensor_cores_idle_is_not_fine(monkeypatch):
    spec = importlib.util.spec_from_file_location("aot", COMMAND)
    aot = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "aot", aot)  # its dataclasses look their module up
    spec.loader.exec_module(aot)
    on_tensor_cores = Counter(HMMA=32, LDGSTS=18)
    fine = aot.Compiled("walk", "lorentz, top 1", "16", 80, 128, 0, 48 << 10, 8, on_tensor_cores)
    assert fine.is_fine
    assert fine.resident == 2
    assert not replace(fine, stack=8).is_fine
    assert not replace(fine, shared=164 << 10).is_fine
    assert not replace(fine, instructions=Counter(HMMA=32)).is_fine
    assert not replace(fine, instructions=Counter(LDGSTS=18)).is_fine
    assert not replace(fine, instructions=Counter(HGMMA=4, UTMALDG=2)).is_fine  # of another architecture
    assert replace(fine, instructions=Counter(), precision="ieee").is_fine
    assert replace(fine, instructions=Counter(), kernel="walk_lists").is_fine
