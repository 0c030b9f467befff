"""Each run writes down the machine it ran on; benchmark results mean nothing without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add what decides the figures to pytest-benchmark's own machine card."""
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["cores"] = os.cpu_count()
    machine_info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine_info["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "triton")}
    machine_info.pop("node", None)  # the host's name is nobody's business
    machine_info["release"] = platform.release().split("-")[0]
