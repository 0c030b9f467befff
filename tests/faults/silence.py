"""A process or a data worker killed or stopped: who it is gets said, and everything ends."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from small_run import LINEAGES, picture

from bioclip_hc.data.sample import Sample
from bioclip_hc.data.writer import write_shards
from faults.lab import LONG, Case, Lane, Outcome, World, finish, last_step, need, need_equal, poll

NAME = "silence"
FAULT = "one of several processes, or a data worker, killed or stopped"
PROMISE = "named with its step, and its shard within a sample, within 60 s; all end with another code than 0"

LIMIT = 60.0  # seconds
LONGER = ("--optim.epochs", "12")

# kind: (processes, who, signal, run.silence or None for its default, cases)
KINDS = {
    "a process of two killed": (2, "process", "kill", None, 6),
    "a process of four killed": (4, "process", "kill", None, 2),
    "a process of two stopped": (2, "process", "stop", None, 2),
    "a process of two stopped, run.silence = 6": (2, "process", "stop", 6, 4),
    "a data worker killed": (1, "worker", "kill", None, 4),
    "a data worker of two processes killed": (2, "worker", "kill", None, 4),
    "a data worker stopped": (1, "worker", "stop", None, 2),
    "a data worker of two processes stopped, run.silence = 6": (2, "worker", "stop", 6, 4),
}


def cases(count: int = 28) -> list[Case]:
    """Every kind so often; at most `count`."""
    made = [Case(f"silence, {kind}, {i}", kind) for kind, (*_, number) in KINDS.items() for i in range(number)]
    count = min(count, len(made))
    return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]


def run(case: Case, lane: Lane) -> Outcome:
    """Strike, wait for the names, resume, hold the end against the uninterrupted run's."""
    processes, who, what, silence, _ = KINDS[case.kind]
    draw = case.random
    options = LONGER if who == "process" else ("--data.train", str(_large_pictures(lane)), "--optim.epochs", "5")
    reference = lane.laboratory.reference(lane, *options, processes=processes)
    output = lane.folder(case.name) / "run"
    free = ("--data.workers", "2") if who == "worker" else ("--data.workers", str(draw.choice([0, 1])))
    free += ("--run.silence", str(silence)) if silence else ()
    victim, step = draw.randrange(processes), draw.randrange(2, 9)
    fault = {what: {draw.choice(["forward", "backward"]): step}} if who == "process" else None
    world = World(lane, output, *options, *free, processes=processes, fault=fault, faulty=victim)
    named = rf"process {victim} \(host [^,]+, pid {world.pids[victim]}\)"
    if who == "process":
        poll(lambda: _struck(world, victim))
    else:
        poll(lambda: last_step(output) >= step)
        worker = draw.choice(_children(world.pids[victim]))
        os.kill(worker, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        named = rf"data worker \d \(pid {worker}\) of {named}"
    begin = time.monotonic()
    others = [rank for rank in range(processes) if who == "worker" or rank != victim]
    poll(lambda: not world.running() or all(world.codes[rank] is not None for rank in others), LONG, every=0.01)
    seconds = time.monotonic() - begin
    codes = [world.codes[rank] for rank in others]
    world.reap_rest()  # a process that is stopped for good
    need(None not in codes, f"hung: exit codes {codes} after {seconds:.0f} s")
    need(0 not in codes, f"exit codes {codes}")
    need(seconds <= LIMIT, f"{seconds:.0f} s")
    for rank in others:
        said = world.terminals[rank].read_text()
        need(
            re.search(rf"train\.py: .*{named}.*at step \d+", said),
            f"process {rank} names no {named}: {said[-600:]}",
        )
    shard = bool(re.search(rf"{named}.*reading sample \d+: \S+\.tar", world.printed))
    finish(lane, output, *options, *free, processes=processes)
    bits = need_equal(reference, output)
    return Outcome(figures={"seconds": seconds, "what": what, "shard": shard, "silence": silence or 30,
                            "bits": sum(bits.values())})  # fmt: skip


def _large_pictures(lane: Lane) -> Path:
    """Shards whose pictures take long to read, so that workers are within a sample nearly always."""

    def make(folder: Path) -> None:
        samples = (Sample(f"{i:04d}", picture(i, (1500, 1400)), LINEAGES[i % len(LINEAGES)]) for i in range(48))
        write_shards(samples, folder / "shards", samples_per_shard=20)

    return lane.laboratory.once("large", make) / "shards"


def _struck(world: World, victim: int) -> bool:
    """Whether the process has died or is stopped."""
    world.running()
    if world.codes[victim] is not None:
        return True
    stat = Path(f"/proc/{world.pids[victim]}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def _children(pid: int) -> list[int]:
    """Its data workers: child processes."""
    found = poll(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return sorted(map(int, found))


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    parts = []
    for what, text in (("kill", "killed"), ("stop", "stopped")):
        seconds = [o.figures["seconds"] - (o.figures["silence"] if what == "stop" else 0)
                   for o in outcomes if o.figures.get("what") == what]  # fmt: skip
        after = "the signal" if what == "kill" else "run.silence (30 s by default)"
        if seconds:
            parts.append(f"{text}: all ended at most {max(seconds):.1f} s after {after}")
    shards = sum(o.figures.get("shard", False) for o in outcomes)
    return "; ".join(parts) + f"; {shards} workers struck within a sample, its shard named"
