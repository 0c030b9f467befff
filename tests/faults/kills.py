"""SIGKILL at any moment: while starting, training, saving, exporting, resuming; one process, one or both of two."""

from __future__ import annotations

import shutil
import signal
import time
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
    """Kill, once or twice, resume, hold the end against the uninterrupted run's."""
    victim = Victim(case, lane)
    victim.strike()
    left = _left(victim.output)
    kills = 1
    if case.kind in ("while resuming", "twice"):
        kills += victim.strike_again()
    finish(lane, victim.output, *victim.options, processes=victim.processes)
    bits = need_equal(victim.reference, victim.output)
    return Outcome(kills, kills, figures={"left": left, "bits": sum(bits.values())})


class Victim:
    """A run that is killed, with options and moments of its own."""

    def __init__(self, case: Case, lane: Lane) -> None:
        self.case, self.lane, self.draw = case, lane, case.random
        self.processes = case.facts["processes"]
        numbers = ("--run.zero-stage", str(self.draw.choice([0, 1, 1, 2, 3])))
        free = (
            "--run.save-every",
            str(self.draw.choice([2, 3, 4])),
            "--run.keep",
            str(self.draw.choice([1, 1, 2, 3])),
        )
        free += ("--data.workers", str(self.draw.choice([0, 0, 1])))
        if case.kind == "at a file operation of saving":  # these are counted once, for the same options
            numbers, free = (), ("--run.keep", "1")
        self.options = numbers + free
        self.reference = lane.laboratory.reference(lane, *numbers, processes=self.processes)
        self.seconds = lane.laboratory.seconds(self.reference)
        self.output = lane.folder(case.name) / "run"

    def strike(self) -> None:
        """The first kill; starts over in the rare case that the run has ended before."""
        if self.case.kind == "at a file operation of saving":
            number = 1 + int(self.case.facts["at"] * operations(self.lane, *self.options))
            world = World(self.lane, self.output, *self.options, fault={"kill": {"operation": number}})
            need(world.wait() == [-signal.SIGKILL], f"no operation {number}: {world.codes}")
            return
        victims = [0] if self.processes == 1 else self.draw.choice([[0], [1], [0, 1]])
        for hurry in (1.0, 0.7, 0.5, 0.3, 0.1):  # the uninterrupted run may have been timed on a busier machine
            shutil.rmtree(self.output, ignore_errors=True)
            world = World(self.lane, self.output, *self.options, processes=self.processes)
            self._await_moment(hurry)
            if world.running():
                for rank in victims:
                    world.send(signal.SIGKILL, rank)
                patience = LONG if len(victims) == self.processes else self.draw.uniform(0.05, 1.0)
                if -signal.SIGKILL in world.reap_rest(patience):
                    return
        need(False, "the run ended before it could be killed, five times")

    def _await_moment(self, hurry: float) -> None:
        """Until the first kill is due."""
        if self.case.kind.startswith("while saving"):
            _save_seen(self.output, skip=self.draw.randrange(3), delay=self.draw.uniform(0, 0.15))
        elif self.case.kind.startswith("any moment"):
            time.sleep(self.case.facts["at"] * self.seconds * hurry)
        else:
            time.sleep(self.draw.random() * self.seconds * hurry)

    def strike_again(self) -> int:
        """Kill what resumes: while it loads, or at any moment; returns whether it was killed."""
        noted = Resumption(self.output)
        world = World(self.lane, self.output, *self.options, "--resume")
        share = 0.45 if self.case.kind == "while resuming" else 1.0  # nearly half of a short run is its start
        time.sleep(self.draw.random() * share * self.seconds)
        if world.running():
            world.send(signal.SIGKILL, 0)
        killed = world.wait() == [-signal.SIGKILL]
        if len(events(self.output, "resume")) > noted.before:
            noted.check()
        return int(killed)


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
    left = [outcome.figures["left"] for outcome in outcomes if "left" in outcome.figures]
    states = ", ".join(f"{left.count(state)} {state}" for state in dict.fromkeys(sorted(left)))
    bits = sum(outcome.figures.get("bits", 0) for outcome in outcomes)
    return f"checkpoints left by the first kill: {states}; differing bits: {bits}"
