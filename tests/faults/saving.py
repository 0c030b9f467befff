"""Saving where it cannot be done: full and read-only disks, no inodes, a limit on files, things in the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.lab import Case, Lane, Outcome, Skip, World, events, finish, need, need_equal, newest_step, poll

import checkpoint

NAME = "saving"
FAULT = "disk full at many levels, no inodes, read-only, file-size limit (EFBIG), a file in the way, while saving"
PROMISE = "one clear error on every process, exit code not 0, the old checkpoints intact; goes on when mended"

MB = 1_000_000  # a checkpoint has 26 of them, the model 7
LEVELS = (10, 24, 35, 45, 55, 70, 80, 83)  # MB of a disk: fails at the first save, ..., at the export
LATE = (0, 1, 4, 8, 14, 20)  # MB left once a save has begun
LIMITS = (30_000, 1_000_000, 6_545_000, 9_000_000)  # bytes of a file


def cases(count: int = 40) -> list[Case]:
    """Every fault; at most `count`."""
    made = [_case("a small disk", f"{mb} MB", 1 + i % 2, mb=mb) for i, mb in enumerate(LEVELS)]
    made += [_case("filled during a save", f"{mb} MB left", 1 + i % 2, mb=mb) for i, mb in enumerate(LATE)]
    made += [_case("no inodes left", f"{inodes} inodes", 1, inodes=inodes) for inodes in (8, 11, 14, 17)]
    made += [_case("made read-only", f"at step {step}", 1 + step % 2, step=step) for step in (1, 4, 5, 8)]
    for limit in LIMITS:
        made += [
            _case("a limit on files", f"{limit} bytes, process {n} of {1 + n}", 1 + n, limit=limit) for n in (0, 1)
        ]
    made += [_case("in the way", what, 1, what=what) for what in ("a file named .step-00000008.partial",
             "a file named step-00000008", "a folder named step-00000008")]  # fmt: skip
    count = min(count, len(made))
    return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]


def _case(kind: str, name: str, processes: int, **facts: object) -> Case:
    return Case(f"saving, {kind}, {name}, {processes} x", kind, {"processes": processes, **facts})


def run(case: Case, lane: Lane) -> Outcome:
    """Let it fail, look at what is left, mend it, resume, hold the end against the uninterrupted run's."""
    processes = case.facts["processes"]
    reference = lane.laboratory.reference(lane, processes=processes)
    folder = lane.folder(case.name)
    with FAULTS[case.kind](case, lane, folder) as (world, mend):
        output = world.output
        codes = world.wait()
        announced = [event["step"] for event in events(output, "checkpoint")]
        lost = f"the log announces {announced}, the newest whole one is {newest_step(output)}"
        need(newest_step(output) >= max(announced, default=0), lost)
        for path in checkpoint.complete(output / "checkpoints"):
            need(not checkpoint.damage(path) or case.kind == "in the way", f"{path.name} is damaged")
        may_pass = case.kind == "in the way"  # a folder without a manifest may be set aside
        if not (may_pass and codes == [0]):
            need(None not in codes and 0 not in codes, f"exit codes {codes}: {world.printed[-600:]}")
            for terminal in world.terminals:
                printed = terminal.read_text()
                lines = [line for line in printed.splitlines() if line.startswith("train.py: ")]
                need(len(lines) == 1 and "Traceback" not in printed, f"no clear error: {printed[-900:]}")
        mend()
        finish(lane, output, processes=processes, damaged=case.kind == "in the way")
        bits = need_equal(reference, output)
    return Outcome(figures={"bits": sum(bits.values())})


Started = Iterator[tuple[World, Callable[[], None]]]


def _world(case: Case, lane: Lane, output: Path, fault: dict[str, object] | None = None) -> World:
    return World(lane, output, processes=case.facts["processes"], fault=fault, faulty=case.facts["processes"] - 1)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something mounted on a folder.

    Raises:
        Skip: without the privilege.
    """
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skip(f"mounting needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


@contextlib.contextmanager
def _small_disk(case: Case, lane: Lane, folder: Path) -> Started:
    disk = folder / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size={case.facts['mb'] * MB}", "tmpfs"):
        yield _world(case, lane, disk / "run"), lambda: _remount(disk, "size=1g")


@contextlib.contextmanager
def _filled(case: Case, lane: Lane, folder: Path) -> Started:
    """Others fill the disk after a save has looked for room."""
    disk = folder / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size={200 * MB}", "tmpfs"):
        world = _world(case, lane, disk / "run")
        poll(lambda: list(disk.glob("run/checkpoints/.step-00000008.partial")) or not world.running(), every=1e-4)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > case.facts["mb"] * MB:
                filler.write(bytes(MB // 2))
        yield world, (disk / "filler").unlink


@contextlib.contextmanager
def _no_inodes(case: Case, lane: Lane, folder: Path) -> Started:
    disk = folder / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size=300m,nr_inodes={case.facts['inodes']}", "tmpfs"):
        yield _world(case, lane, disk / "run"), lambda: _remount(disk, "nr_inodes=9999")


@contextlib.contextmanager
def _read_only(case: Case, lane: Lane, folder: Path) -> Started:
    checkpoints = folder / "run" / "checkpoints"
    world = _world(case, lane, folder / "run")
    step = case.facts["step"]
    poll(lambda: any(e["step"] >= step for e in events(folder / "run", "checkpoint")) if step >= 4
         else (folder / "run" / "config.json").is_file())  # fmt: skip
    with mounted(checkpoints, "--bind", str(checkpoints)):
        _remount(checkpoints, "ro,bind")
        yield world, lambda: _remount(checkpoints, "rw,bind")


@contextlib.contextmanager
def _limit(case: Case, lane: Lane, folder: Path) -> Started:
    yield _world(case, lane, folder / "run", {"limit": case.facts["limit"]}), lambda: None


@contextlib.contextmanager
def _in_the_way(case: Case, lane: Lane, folder: Path) -> Started:
    what, _, name = case.facts["what"].rpartition(" named ")
    thing = folder / "run" / "checkpoints" / name
    world = _world(case, lane, folder / "run")
    poll(lambda: (folder / "run" / "config.json").is_file())
    thing.parent.mkdir(exist_ok=True)
    if what == "a file":
        thing.write_text("mine")
    else:
        thing.mkdir()
        (thing / "notes").write_text("mine")

    def mend() -> None:
        for path in thing.parent.iterdir():
            if path.is_file():  # it may have been set aside under another name
                path.unlink()

    yield world, mend


FAULTS = {
    "a small disk": _small_disk,
    "filled during a save": _filled,
    "no inodes left": _no_inodes,
    "made read-only": _read_only,
    "a limit on files": _limit,
    "in the way": _in_the_way,
}


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    bits = [outcome.figures["bits"] for outcome in outcomes if "bits" in outcome.figures]
    return f"{len(bits)} runs went on when mended; differing bits: {sum(bits)}"
