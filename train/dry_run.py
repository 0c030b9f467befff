"""`train.py CONFIG --dry-run`: two steps of the real run, measured, and what follows for the whole of it.

Everything is built as the run would build it, from the real shards, on all processes; only run.output is a folder
that is thrown away, so that the real one is neither claimed nor written.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from bioclip_hc.data.loader import Batch

from config import Config
from environment import TRAINING_BYTES, counted, size
from watchdog import READING

if TYPE_CHECKING:
    from train import Training


class Measured(NamedTuple):
    """Of one process: seconds until the first batch, from then on of each, and of a step; bytes at most."""

    first_batch: float
    batch: float
    step: float
    gpu: int
    gpu_reserved: int
    host: int
    workers: int


def elsewhere(config: Config, folder: str) -> Config:
    """The same run in a folder of no consequence, this process' own, followed by nobody."""
    output = Path(folder) / "run"
    output.mkdir()  # a run's folder is made by the first process, in its own
    run = dataclasses.replace(config.run, output=str(output), trackers=())
    return dataclasses.replace(config, run=run)


def rehearse(run: Training, output: Path) -> int:
    """Make two steps, and say on the first process what they took; `output` is where the run would write."""
    mine = measure(run)
    everyone: list[Any] = [None] * run.world_size
    dist.all_gather_object(everyone, mine)
    if run.world_rank == 0:
        worst = Measured(*map(max, zip(*everyone, strict=True)))  # the slowest and the largest decide
        for line in lines(run, worst, output):
            print(line, flush=True)
    return 0


def measure(run: Training) -> Measured:
    """Load batches, then make two steps: the first warms up, the second is timed.

    All workers begin at once, so the first batch comes when one has been loaded beside all others, and the loader's
    pace shows in the time until the first worker's second one.
    """
    ahead = max(1, run.config.data.workers)
    run.stream = run.batches.load(0, 3 * ahead, run.config.data.workers)
    batches: list[Batch] = []
    arrived, start = [], time.perf_counter()
    run.watch.at(1, READING)
    for _ in range(ahead + 1):
        batches = [*batches, next(run.stream)][:2]
        arrived.append(time.perf_counter() - start)
    for step, batch in enumerate(batches):
        run.watch.at(step + 1, "training")
        start = time.perf_counter()
        run.advance(batch)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
    gpu = torch.cuda.max_memory_allocated() if run.device.type == "cuda" else 0
    reserved = torch.cuda.max_memory_reserved() if run.device.type == "cuda" else 0
    workers = sum(proportional_set(child.pid) for child in multiprocessing.active_children() if child.pid)
    pace = (arrived[-1] - arrived[0]) / ahead
    return Measured(arrived[0], pace, took, gpu, reserved, peak_resident_set(), workers)


def peak_resident_set() -> int:
    """Bytes of memory that this process has held at most."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def proportional_set(pid: int) -> int:
    """Bytes of memory of a process, each page divided among those that share it; 0 for one that has ended."""
    try:
        return 1024 * int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def pace(measured: Measured, workers: int) -> tuple[float, float]:
    """Seconds from step to step, and the share of them spent waiting for data; workers load during a step."""
    whole = max(measured.step, measured.batch) if workers else measured.step + measured.batch
    return whole, 1 - measured.step / whole


def checkpoint_bytes(parameters: int, trained: int, config: Config) -> int:
    """One checkpoint of all processes: parameters as trained, fp32 masters where there are any, two moments."""
    masters = 0 if config.run.zero_stage == 0 and config.run.precision == "fp32" else 4
    return TRAINING_BYTES[config.run.precision] * parameters + (8 + masters) * trained


def lines(run: Training, measured: Measured, output: Path) -> list[str]:
    """What was measured, and what is estimated from it, for people."""
    config, workers = run.config, run.config.data.workers
    seconds, waiting = pace(measured, workers)
    numbers = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in run.model.parameters()]
    parameters, trained = sum(n for n, _ in numbers), sum(n for n, learns in numbers if learns)
    one, kept = checkpoint_bytes(parameters, trained, config), config.run.keep
    needed = (kept + 1) * one + 4 * parameters
    where = nearest_folder(output)
    free = shutil.disk_usage(where).free
    gpu = f"{size(measured.gpu)} of the GPU ({size(measured.gpu_reserved)} reserved), " if measured.gpu else ""
    found = [
        f"dry run    two steps on {counted(run.world_size, 'process', 'es')}; nothing was written to {output}",
        f"measured   {measured.step:.2f} s a step; the first batch after {measured.first_batch:.2f} s, one every "
        f"{measured.batch:.2f} s from then on ({counted(workers, 'worker')} a process)",
        f"measured   at most {gpu}{size(measured.host)} of memory a process"
        f"{f', {size(measured.workers)} its workers' if workers else ''}",
        f"estimated  {duration(seconds)} from step to step, {waiting:.0%} of it waiting for data; "
        f"{duration(seconds * run.batches.plan.steps_per_epoch)} an epoch, {duration(seconds * run.steps)} for all "
        f"{run.steps:,} steps",
        f"estimated  {size(one)} a checkpoint, {size(needed)} for {kept} kept, one being written and the model; "
        f"{where} has {size(free)}",
    ]
    if tip := run.advice(waiting):
        found.append(f"advice     {tip}")
    return found + [f"warning: {problem}" for problem in problems(output, where, needed, free)]


def problems(output: Path, where: Path, needed: int, free: int) -> list[str]:
    """What stands in the way of writing there."""
    found = []
    if (output / "config.json").is_file():
        found.append(f"{output} holds a run; --resume continues it, or give run.output another folder")
    elif output.exists() and not output.is_dir():
        found.append(f"{output} is a file; give run.output a folder")
    elif output.exists() and any(not path.name.startswith(".") for path in output.iterdir()):
        found.append(f"{output} holds other files; give run.output a new or empty folder")
    if not os.access(where, os.W_OK):
        found.append(f"{where} cannot be written to; give run.output another folder")
    if free < needed:
        found.append(f"{where} has {size(free)} for {size(needed)}; make room, or lower run.keep")
    return found


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the one above it in which it would be made."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2f} seconds"
