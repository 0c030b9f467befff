"""Thousands of steps with frequent saves, workers and a line of log a step: what grows, and by how much."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from faults.lab import Case, Lane, Outcome, Skip, World, last_step, need

NAME = "soak"
FAULT = "a long run with a save every 50 steps, two workers, a line of log a step"
PROMISE = "no growth of memory, file descriptors, threads, /dev/shm"

MIB = 1024 * 1024
# growth allowed in 10,000 steps: in the run of 5,200 that is 8 MiB, and 2 of what is counted
BOUNDS = {"MiB": 16.0, "MiB of workers": 16.0, "descriptors": 4.0, "threads": 4.0, "MiB in /dev/shm": 2.0}
WINDOWS = 12
LEAST = 3000
PATIENCE = 3000.0  # seconds; on two cores to itself it takes five minutes


def cases(steps: int = 5200) -> list[Case]:
    """One case."""
    return [Case(f"soak, {steps} steps", "steps", {"steps": steps})]


def run(case: Case, lane: Lane) -> Outcome:
    """Measure once in twenty steps or so, fit a line."""
    steps = case.facts["steps"]
    if steps < LEAST:
        raise Skip(f"{steps} steps do not tell growth from warming up, {LEAST} do")
    output = lane.folder(case.name) / "run"
    world = World(lane, output, "--optim.epochs", str(steps / 4), "--run.save-every", "50", "--run.keep", "2",
                  "--data.workers", "2", "--model.architecture", "tiny.json")  # fmt: skip
    pid, samples = world.pids[0], []
    begin = time.monotonic()
    log = output / "log.jsonl"
    while world.running() and time.monotonic() - begin < PATIENCE:
        if found := measure(pid):
            samples.append({"at": log.stat().st_size if log.is_file() else 0, **found})
        time.sleep(max(0.05, steps / 5200 * 0.25))
    codes = world.wait(5)
    need(None not in codes, f"at step {last_step(output)} after {PATIENCE:.0f} s")
    need(codes == [0], f"ended with {codes} at step {last_step(output)}: {world.printed[-500:]}")
    need(last_step(output) == steps, f"came to step {last_step(output)}")
    return judge(samples, steps)


def measure(pid: int) -> dict[str, float] | None:
    """A process and its workers, from /proc; None when it has ended."""
    try:
        workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if len(workers) < 2:
            return None
        return {
            "MiB": _memory(pid),
            "MiB of workers": sum(map(_memory, workers)),
            "descriptors": sum(len(os.listdir(f"/proc/{p}/fd")) for p in (pid, *workers)),
            "threads": sum(len(os.listdir(f"/proc/{p}/task")) for p in (pid, *workers)),
            "MiB in /dev/shm": _shared((pid, *workers)),
        }
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None


def _memory(pid: int) -> float:
    """Resident memory of its own, in MiB: anonymous pages, which files read or written do not add to."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no RssAnon")


def _shared(pids: tuple[int, ...]) -> float:
    """MiB of files in /dev/shm that bear one of the processes' ids (torch_<pid>_...), and shared pages held."""
    total = 0
    for path in Path("/dev/shm").iterdir():
        if any(f"_{pid}_" in path.name for pid in pids):
            total += path.stat().st_size
    return total / MIB


def judge(samples: list[dict[str, Any]], steps: int) -> Outcome:
    """Slopes of the floor in 10,000 steps, after a quarter's warm-up, against the bounds.

    What a batch or a save holds for a moment comes and goes; what leaks lifts the least that is held. So a line is
    fitted to the lower tenths of windows of the run.
    """
    end = samples[-1]["at"]
    late = [sample for sample in samples if sample["at"] >= end / 4]
    windows = np.array_split(np.arange(len(late)), WINDOWS)
    need(len(windows[-1]) >= 4, f"only {len(late)} measurements")
    x = [np.mean([late[i]["at"] for i in window]) / end * steps for window in windows]
    figures: dict[str, Any] = {"steps": steps, "measurements": len(late)}
    grown = []
    for name, bound in BOUNDS.items():
        floors = [float(np.quantile([late[i][name] for i in window], 0.1)) for window in windows]
        slope = float(np.polyfit(x, floors, 1)[0]) * 10_000
        figures[name] = {"slope": round(slope, 3), "floors": [round(floor, 1) for floor in floors]}
        if slope > bound:
            grown.append(f"{name} grows by {slope:.2f} in 10,000 steps ({figures[name]['floors']})")
    return Outcome(steps, 0 if grown else steps, "; ".join(grown), figures)


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    figures = outcomes[0].figures if outcomes else {}
    slopes = ", ".join(f"{name} {figures[name]['slope']:+.2f}" for name in BOUNDS if name in figures)
    return f"growth in 10,000 steps: {slopes}" if slopes else ""
