"""Kill and resume against the uninterrupted run, at named points: every step, epoch boundaries, saves, twice."""

from __future__ import annotations

import signal
from typing import Any

from faults.lab import Case, Lane, Outcome, World, finish, last_step, need, need_equal

NAME = "exactness"
FAULT = "kill and resume at named points: every step, an epoch boundary, a save, twice, two processes"
PROMISE = "parameters, optimizer, random states, order of samples and log of the uninterrupted run"

SAVES = ("--run.save-every", "3")  # saves at 3, 6, 9, 12; epochs end at 4, 8, 12
VARIANTS = {
    "ZeRO 0": ("--run.zero-stage", "0"),
    "ZeRO 2, bf16": ("--run.zero-stage", "2", "--run.precision", "bf16"),
    "ZeRO 3": ("--run.zero-stage", "3"),
    "2 workers": ("--data.workers", "2"),
}


def cases(count: int = 32) -> list[Case]:
    """Points (forward passes, counted from 1, or file operations of a save) by options; at most `count`."""
    points: list[tuple[str, list[dict[str, Any]], tuple[str, ...], int]] = []
    for step in range(12):
        name = {0: "before the first step", 3: "at a checkpoint", 4: "an epoch boundary", 8: "an epoch boundary"}
        points.append((f"after step {step} ({name.get(step, 'between')})", [{"forward": step + 1}], (), 1))
    for operation in (4, 10, 16):
        points.append((f"in a save, file operation {operation}", [{"operation": operation}], (), 1))
    points.append(("twice, steps 5 and 8", [{"forward": 6}, {"forward": 6}], (), 1))
    points.append(("twice, both before a checkpoint", [{"forward": 2}, {"forward": 3}], (), 1))
    points.append(("twice, a step and a save", [{"backward": 8}, {"operation": 8}], (), 1))
    for name, options in VARIANTS.items():
        points.append((f"after step 5, {name}", [{"backward": 6}], options, 1))
        points.append((f"after step 8, {name}", [{"forward": 9}], options, 1))
    for step in (0, 4, 7):
        points.append((f"after step {step}, two processes", [{"backward": step + 1}], (), 2))
    points.append(("twice, two processes", [{"forward": 6}, {"forward": 3}], (), 2))
    count = min(count, len(points))
    chosen = [points[round(i * (len(points) - 1) / max(1, count - 1))] for i in range(count)]
    return [
        Case(f"exactness, {name}", "two processes" if processes == 2 else "one process",
             {"kills": kills, "options": options, "processes": processes})
        for name, kills, options, processes in chosen
    ]  # fmt: skip


def run(case: Case, lane: Lane) -> Outcome:
    """Kill at the points, resume, count the bits by which the ends differ."""
    options, processes = tuple(case.facts["options"]), case.facts["processes"]
    alters = () if options[:1] == ("--data.workers",) else options  # workers leave the numbers alone
    reference = lane.laboratory.reference(lane, *alters, processes=processes)
    output = lane.folder(case.name) / "run"
    stopped = []
    for i, kill in enumerate(case.facts["kills"]):
        again = ("--resume",) if i else ()
        world = World(lane, output, *options, *SAVES, *again, processes=processes, fault={"kill": kill})
        codes = world.wait() if processes == 1 else [world.wait_for(0), *world.reap_rest()]
        need(codes[0] == -signal.SIGKILL, f"process 0 ended with {codes[0]}, not killed at {kill}: {world.printed}")
        stopped.append(last_step(output))
    finish(lane, output, *options, *SAVES, processes=processes)
    bits = need_equal(reference, output)
    return Outcome(figures={"bits": sum(bits.values()), "stopped": stopped})


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    return f"differing bits: {sum(outcome.figures.get('bits', 0) for outcome in outcomes)}"
