"""SIGTERM and SIGUSR1 at random moments of training, to one process or to both of two."""

from __future__ import annotations

import signal
import time

from faults.lab import (
    LONG,
    STEPS,
    Case,
    Lane,
    Outcome,
    World,
    events,
    finish,
    last_step,
    need,
    need_equal,
    newest_step,
    poll,
)

NAME = "signals"
FAULT = "SIGTERM or SIGUSR1 at a random moment, to one process, or to one or both of two"
PROMISE = "finishes the step, saves, exits with 143; no step is lost"

PREEMPTED = 143


def cases(count: int = 48) -> list[Case]:
    """Both signals in turn; every third case has two processes."""
    made = []
    for i in range(count):
        kind = ("SIGTERM", "SIGUSR1")[i % 2]
        processes = 2 if i % 3 == 2 else 1
        made.append(Case(f"signals, {kind}, {i}", f"{kind}, {processes} process{'es' * (processes > 1)}",
                         {"signal": kind, "processes": processes}))  # fmt: skip
    return made


def run(case: Case, lane: Lane) -> Outcome:
    """Signal, look at what was saved, resume, hold the end against the uninterrupted run's."""
    draw, processes = case.random, case.facts["processes"]
    number = signal.Signals[case.facts["signal"]]
    reference = lane.laboratory.reference(lane, processes=processes)
    output = lane.folder(case.name) / "run"
    free = ("--run.save-every", str(draw.choice([0, 3])), "--data.workers", str(draw.choice([0, 1, 2])))
    world = World(lane, output, *free, processes=processes)
    step = draw.randrange(STEPS - 1)
    poll(lambda: last_step(output) >= step if step else events(output, "start"))
    time.sleep(draw.uniform(0.02, 0.06))  # past the start, or into the next step
    for rank in range(processes) if processes == 1 or draw.random() < 0.5 else [draw.randrange(processes)]:
        world.send(number, rank)
    sent = time.monotonic()
    codes = world.wait(LONG)
    seconds = time.monotonic() - sent
    logged, saved = last_step(output), newest_step(output)
    need(codes == [PREEMPTED] * processes or (codes == [0] * processes and logged == STEPS),
         f"exit codes {codes} after step {logged}")  # fmt: skip
    need(saved == logged, f"step {logged} was done, step {saved} is saved")
    finish(lane, output, *free, processes=processes)
    bits = need_equal(reference, output)
    return Outcome(figures={"lost": logged - saved, "seconds": seconds, "bits": sum(bits.values())})


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    seconds = [outcome.figures["seconds"] for outcome in outcomes if "seconds" in outcome.figures]
    lost = sum(outcome.figures.get("lost", 0) for outcome in outcomes)
    longest = max(seconds, default=0.0)
    return f"steps lost: {lost}; exit at most {longest:.1f} s after the signal"
