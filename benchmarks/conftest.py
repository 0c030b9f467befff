"""Each run writes down the machine it ran on, without which figures mean nothing, and what it did not measure."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probe
import pytest
import torch

collect_ignore = ["bench_kernels.py", "bench_prepare.py"]  # commands, for a GPU
NOT_MEASURED = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-check", action="store_true", help="only what a suite's in_check() names: make bench-check"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_MEASURED] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under --in-check keep the cases for which their suite's `in_check`, called with their parameters, is true."""
    if config.getoption("--in-check", default=False):
        items[:] = [item for item in items if _in_check(item)]


def _in_check(item: Any) -> bool:
    says = getattr(item.module, "in_check", None)
    return says is not None and hasattr(item, "callspec") and says(**item.callspec.params)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    """Keep why a way of a group was skipped, or how it failed."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if benchmark is not None and report.when == "call" and not report.passed:
        reason = call.excinfo.value
        where = {"suite": item.path.stem, "group": str(benchmark.group), "way": benchmark.extra_info.get("way", "")}
        words = str(reason) if report.skipped else f"failed: {type(reason).__name__}: {reason}"
        item.config.stash[NOT_MEASURED].append(where | {"reason": (words.splitlines() or [""])[0]})
    return report


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add what decides the figures to pytest-benchmark's own machine card."""
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["cores"] = os.cpu_count()
    machine_info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine_info["versions"] = {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "triton", "open_clip_torch", "geoopt", "webdataset")
        if _installed(name)
    }
    machine_info["rates"] = probe.rates()
    machine_info["date"] = datetime.date.today().isoformat()
    machine_info.pop("node", None)  # the host's name is nobody's business
    machine_info["release"] = platform.release().split("-")[0]


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Add what was not measured, and which suite each benchmark is of; leave out what failed after its timing."""
    output_json["not_measured"] = config.stash[NOT_MEASURED]
    failed = [tuple(m[key] for key in ("suite", "group", "way")) for m in output_json["not_measured"]]
    for benchmark in output_json["benchmarks"]:
        benchmark["suite"] = Path(benchmark["fullname"].split("::")[0]).stem
    output_json["benchmarks"] = [
        benchmark
        for benchmark in output_json["benchmarks"]
        if (benchmark["suite"], benchmark["group"], benchmark["extra_info"].get("way", "")) not in failed
    ]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
