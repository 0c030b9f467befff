"""The GPU that benchmarks run on: python benchmarks/machine.py says which, and fails where there is none.

Figures mean nothing without the machine they were measured on; the host's name is nobody's business.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton

RESULTS = Path(__file__).parent / "results"


def why_no_gpu() -> str | None:
    """Why GPU benchmarks cannot run here; None where they can."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no"
        return f"no CUDA device is visible to torch {torch.__version__} (built for CUDA: {built})"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; the kernels need 8.0 or newer"
        )
    return None


def machine_card() -> dict[str, Any]:
    """What decides the figures."""
    card = {
        "gpu": "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        card |= {
            "gpu": device.name,
            "capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_gib": round(device.total_memory / 2**30, 1),
            "driver": _nvidia_smi("driver_version"),
            "power_limit": _nvidia_smi("power.limit"),
            "max_clock": _nvidia_smi("clocks.max.sm"),
        }
    return card


def _nvidia_smi(field: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def results_path(gpu: str) -> Path:
    """Where the kernels' results of that GPU are kept: results/kernels-nvidia-h100-80gb-hbm3.json."""
    name = "-".join("".join(c if c.isalnum() else " " for c in gpu.lower()).split())
    return RESULTS / f"kernels-{name}.json"


def require_gpu() -> None:
    """Exit with the reason where there is no GPU that the kernels run on."""
    reason = why_no_gpu()
    if reason is not None:
        sys.exit(f"This needs an NVIDIA GPU: {reason}. Nothing was run.")


if __name__ == "__main__":
    require_gpu()
    print(", ".join(f"{key} {value}" for key, value in machine_card().items()))
