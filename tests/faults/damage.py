"""Bits flipped, files cut and pages lost anywhere in a checkpoint: found, and the one before it used."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from faults.lab import Case, Lane, Outcome, finish, need, need_equal

import checkpoint

NAME = "damage"
FAULT = "a bit flipped, a file cut off, a page of zeros, at random positions of all files of a checkpoint"
PROMISE = "detected by checksum; the run goes on from the checkpoint before it and ends with the same bits"

BATCH = 50  # positions of one case
PAGE = 4096


def cases(count: int = 1200, resumes: int = 24) -> list[Case]:
    """Positions in batches, and real resumes from damaged runs."""
    batches = [
        Case(f"damage, positions {i * BATCH} to {i * BATCH + min(BATCH, count - i * BATCH) - 1}", "detected",
             {"positions": min(BATCH, count - i * BATCH)})
        for i in range(-(-count // BATCH))
    ]  # fmt: skip
    return batches + [Case(f"damage, resume {i}", "resumed") for i in range(resumes)]


def run(case: Case, lane: Lane) -> Outcome:
    """Damage a copy of a finished run's checkpoint."""
    reference = lane.laboratory.reference(lane)
    return _resumed(case, lane, reference) if case.kind == "resumed" else _detected(case, lane, reference)


def _detected(case: Case, lane: Lane, reference: Path) -> Outcome:
    """Each position by itself, through the check that every resume begins with."""
    folder = lane.folder(case.name) / "checkpoint"
    shutil.copytree(reference / "checkpoints" / "step-00000012", folder)
    need(checkpoint.damage(folder) == "", "the whole checkpoint does not pass")
    meaning = json.loads((folder / checkpoint.MANIFEST).read_text())
    draw, found, missed = case.random, 0, []
    for _ in range(case.facts["positions"]):
        path, how, whole = harm(draw, folder)
        meant_nothing = path.name == checkpoint.MANIFEST and _reads_as(path, meaning)
        if checkpoint.damage(folder) or meant_nothing:
            found += 1
        else:
            missed.append(f"{path.name}: {how}")
        path.write_bytes(whole)
    need(checkpoint.damage(folder) == "", "the mended checkpoint does not pass")
    return Outcome(case.facts["positions"], found, "; ".join(missed[:5]))


def _resumed(case: Case, lane: Lane, reference: Path) -> Outcome:
    """Damage the newest one, or the two newest, and resume."""
    output = lane.folder(case.name) / "run"
    shutil.copytree(reference, output, ignore=shutil.ignore_patterns("model"))
    draw = case.random
    number = draw.choice([1, 1, 2])
    for path in checkpoint.complete(output / "checkpoints")[-number:]:
        while not checkpoint.damage(path):  # a page of zeros may have been one
            harm(draw, path)
    before = checkpoint.newest(output / "checkpoints")[0]
    need(before is not None and before.name == f"step-{12 - 4 * number:08d}", f"the newest whole one is {before}")
    printed = finish(lane, output, damaged=True)  # it must go on from there
    need(printed.count("damaged checkpoint left aside") >= number, f"no warning: {printed[-500:]}")
    bits = need_equal(reference, output)
    return Outcome(figures={"bits": sum(bits.values())})


def harm(draw: random.Random, folder: Path) -> tuple[Path, str, bytes]:
    """Damage one file of a folder; returns it, how, and its bytes before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = draw.choice(files)
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    place = draw.choice([0, len(data) - 1, *[draw.randrange(len(data)) for _ in range(18)]])
    how = draw.choice(["bit", "bit", "cut", "page"])
    if how == "bit":
        data[place] ^= 1 << (bit := draw.randrange(8))
        how = f"bit {bit} of byte {place}"
    elif how == "cut":
        del data[place:]
        how = f"cut at byte {place}"
    else:
        page = place // PAGE * PAGE
        size = min(PAGE, len(data) - page)
        data[page : page + size] = bytes(size)
        how = f"page at byte {page}"
        if data == whole:  # it was zeros
            data[place] ^= 1
            how = f"bit 0 of byte {place}"
    path.write_bytes(data)
    return path, how, whole


def _reads_as(path: Path, meaning: Any) -> bool:
    """Whether a damaged manifest still says the same (a bit of white space may)."""
    try:
        return json.loads(path.read_bytes()) == meaning
    except ValueError:
        return False


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    bits = [outcome.figures["bits"] for outcome in outcomes if "bits" in outcome.figures]
    return f"{len(bits)} runs resumed past the damage; differing bits: {sum(bits)}"
