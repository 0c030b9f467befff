"""SIGKILL at any moment: while starting, training, saving, exporting, resuming; one process, one or both of two."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.lab import LONG, Case, Lane, Outcome, Resumption, World, events, finish, need, need_equal, poll

import checkpoint

NAME = "kills"
FAULT = "SIGKILL at a random moment, while saving, while resuming, twice, to one or both of two processes"
PROMISE = "goes on from the newest whole checkpoint, never from zero; ends with the uninterrupted run's bits"

# kind: (share of the cases, processes)
KINDS = {
    "any moment": (0.22, 1),
    "while saving": (0.20, 1),
    "at a file operation of saving": (0.18, 1),
    "while resuming": (0.10, 1),
    "twice": (0.10, 1),
    "any moment, two processes": (0.10, 2),
    "while saving, two processes": (0.10, 2),
}


def cases(count: int = 210) -> list[Case]:
    """So many, each with its own options and moment."""
    made = []
    for kind, (share, processes) in KINDS.items():
        number = max(1, round(share * count))
        for i in range(number):
            made.append(Case(f"kills, {kind}, {i}", kind, {"processes": processes, "at": (i + 0.5) / number}))
    return made


def run(case: Case, lane: Lane) -> Outcome:
    """Kill, resume, hold the end against the uninterrupted run's."""
    draw, processes = case.random, case.facts["processes"]
    stage = ("--run.zero-stage", str(draw.choice([0, 1, 1, 2, 3])))
    free = ("--run.save-every", str(draw.choice([2, 3, 4])), "--run.keep", str(draw.choice([1, 1, 2, 3])))
    free += ("--data.workers", str(draw.choice([0, 0, 1])))
    reference = lane.laboratory.reference(lane, *stage, processes=processes)
    seconds = lane.laboratory.seconds(reference)
    output = lane.folder(case.name) / "run"
    moment = case.facts["at"] if case.kind.startswith("any moment") else draw.random()
    kills = 0
    left: list[str] = []

    def struck() -> None:
        nonlocal kills
        kills += 1
        left.append(_left(output))

    if case.kind == "at a file operation of saving":
        stage, free = ("--run.zero-stage", "1"), ("--run.keep", "1")
        reference = lane.laboratory.reference(lane, *stage)
        number = 1 + int(case.facts["at"] * operations(lane, *stage, *free))
        world = World(lane, output, *stage, *free, fault={"kill": {"operation": number}})
        need(world.wait() == [-signal.SIGKILL], f"no operation {number}: {world.codes}")
        struck()
    elif case.kind.startswith("while saving"):
        first, delay = draw.randrange(3), draw.uniform(0, 0.15)
        _kill_until_struck(lane, output, (*stage, *free), processes, draw, lambda: _save_seen(output, first, delay))
        struck()
    else:
        delay = moment * seconds
        _kill_until_struck(lane, output, (*stage, *free), processes, draw, lambda: time.sleep(delay))
        struck()
    if case.kind in ("while resuming", "twice"):
        noted = Resumption(output)
        world = World(lane, output, *stage, *free, "--resume")
        share = 0.45 if case.kind == "while resuming" else 1.0  # nearly half of a short run is its start
        time.sleep(draw.random() * share * seconds)
        if world.running():
            world.send(signal.SIGKILL, 0)
            kills += world.wait() == [-signal.SIGKILL]
        if len(events(output, "resume")) > noted.before:
            noted.check()
    finish(lane, output, *stage, *free, processes=processes)
    bits = need_equal(reference, output)
    return Outcome(kills, kills, figures={"left": left, "bits": sum(bits.values())})


def _kill_until_struck(
    lane: Lane,
    output: Path,
    options: tuple[str, ...],
    processes: int,
    draw: random.Random,
    wait: Callable[[], None],
) -> None:
    """Start, wait, kill one or all; start over in the rare case that the run has ended before."""
    victims = [0] if processes == 1 else draw.choice([[0], [1], [0, 1]])
    for _ in range(5):
        shutil.rmtree(output, ignore_errors=True)
        world = World(lane, output, *options, processes=processes)
        wait()
        if world.running():
            for rank in victims:
                world.send(signal.SIGKILL, rank)
            codes = world.reap_rest(LONG if len(victims) == processes else draw.uniform(0.05, 1.0))
            if -signal.SIGKILL in codes:
                return
    need(False, "the run ended before it could be killed, five times")


def _save_seen(output: Path, skip: int, delay: float) -> None:
    """Until `delay` seconds after the beginning of a save, `skip` earlier ones passed over."""
    seen: set[str] = set()

    def found() -> bool:
        seen.update(path.name for path in (output / "checkpoints").glob(".step-*.partial"))
        return len(seen) > skip or (output / "model").exists()

    poll(found)
    time.sleep(delay)


def operations(lane: Lane, *options: str) -> int:
    """File operations from the first save to the end of a run of these options."""

    def make(folder: Path) -> None:
        world = World(lane, folder / "run", *options, fault={"count": str(folder / "count")})
        need(world.wait() == [0], f"the run to be counted ended with {world.codes}: {world.printed[-2000:]}")

    return int((lane.laboratory.once("operations", make) / "count").read_text())


def _left(output: Path) -> str:
    """What a kill left: a checkpoint half written, one half removed, whole ones only, or none."""
    folder = output / "checkpoints"
    if any(folder.glob(".step-*.partial")):
        return "half written"
    whole = [checkpoint.damage(path) == "" for path in checkpoint.complete(folder)]
    return "none" if not whole else "whole" if all(whole) else "half removed"


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    left = [state for outcome in outcomes for state in outcome.figures.get("left", ())]
    states = ", ".join(f"{left.count(state)} {state}" for state in dict.fromkeys(sorted(left)))
    bits = sum(outcome.figures.get("bits", 0) for outcome in outcomes)
    return f"checkpoints left by the first kill: {states}; differing bits: {bits}"
