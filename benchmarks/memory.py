"""Peak memory of a call, as the operating system saw it (Linux)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

CLEAR_REFS = Path("/proc/self/clear_refs")  # writing 5 resets the high-water mark (proc_pid_clear_refs(5))


def peak_beyond_results(call: Callable[[], int]) -> float:
    """MiB that a call held at its peak beyond what it found allocated and what it returns.

    Args:
        call: does the work once and returns the number of bytes of its results.

    Call it once before, so that libraries have taken their own memory.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that malloc keeps would count as held before
    before = _kib("VmRSS")
    CLEAR_REFS.write_text("5")
    results = call()
    return (_kib("VmHWM") - before) / 1024 - results / 2**20


def available_gib() -> float:
    """GiB that the machine can give without swapping, at the moment."""
    return _kib("MemAvailable", "/proc/meminfo") / 2**20


def proportional_kib(pid: int) -> int:
    """Proportional set size of a process, in which a page that n share counts 1/n; 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _kib(field: str, path: str = "/proc/self/status") -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{path} has no {field}")
