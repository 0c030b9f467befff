"""Lose a process or a data worker of a training of two processes by a real signal, and see how the rest ends.

python tests/losing.py [--silence 30]        every case in turn: seconds until it is named, and until all ended
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hosts import start_on, two_hosts, why_not
from small_run import Run, start_together, wait_for_step, write_setup

from bioclip_hc.data.loader import TrainingBatches

ENDLESS = ("--optim.epochs", "1000", "--run.save-every", "0", "--data.workers", "1")


class Case(NamedTuple):
    """Who is hit, by what."""

    process: int
    who: str  # "process" or "worker": that process, or the last of its data workers
    signal: signal.Signals

    def __str__(self) -> str:
        who = f"process {self.process}" if self.who == "process" else f"a data worker of process {self.process}"
        return f"{self.signal.name} to {who}"


CASES = [
    Case(process, who, number)
    for who in ("worker", "process")
    for process in (1, 0)
    for number in (signal.SIGKILL, signal.SIGSTOP)
]


class Outcome(NamedTuple):
    """How it ended."""

    victim: int  # pid
    codes: list[int]  # of both processes
    named: float  # seconds from the blow until every process that lives had named the victim
    ended: float  # seconds from the blow until nothing was left
    printed: list[str]
    left: list[int]  # pids of what was left all the same


def lose(setup: Path, output: Path, case: Case, silence: float) -> Outcome:
    """Train with two processes of one data worker each, strike at the third step, wait for the end."""
    runs = start_together(setup, output, 2, *ENDLESS, "--run.silence", str(silence))
    wait_for_step(output, 3)
    struck = runs[case.process]
    victim = struck.pid if case.who == "process" else children(struck.pid)[-1]
    living = [run for run in runs if run.pid != victim]
    return end_of(runs, [(run, victim) for run in living], lambda: os.kill(victim, case.signal), silence)


def cut_off(setup: Path, output: Path, silence: float) -> Outcome:
    """Train on two hosts, cut off the second at the third step: each side must name the process of the other."""
    with two_hosts(f"losing{os.getpid()}") as hosts:
        runs = start_on(hosts, setup, output, *ENDLESS, "--run.silence", str(silence))
        wait_for_step(output, 3)
        first, second = runs
        return end_of(runs, [(first, second.pid), (second, first.pid)], hosts[1].cut_off, silence)


def end_of(runs: list[Run], naming: list[tuple[Run, int]], blow: Callable[[], None], silence: float) -> Outcome:
    """Strike, and wait until all processes are gone, for a minute more than the silence; who must name whom."""
    pids = [run.pid for run in runs] + [child for run in runs for child in children(run.pid)]
    start, named, end = time.monotonic(), float("inf"), 0.0
    blow()
    while any(map(alive, pids)) and end < silence + 60:
        time.sleep(0.01)
        end = time.monotonic() - start
        if end < named and all(re.search(rf"\W{victim}\) .*ends with code", run.printed) for run, victim in naming):
            named = end
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    codes = [run.wait() for run in runs]
    return Outcome(naming[0][1], codes, named, end, [run.printed for run in runs], left)


def children(pid: int) -> list[int]:
    """Its child processes, in the order in which they began."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs or is stopped; one that has ended and that nobody has asked for its code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def last_shard_hangs() -> None:
    """To be called in a training process: the last shard becomes a FIFO once it is indexed, whose reader waits."""
    load = TrainingBatches.load

    def hanging(self: TrainingBatches, *arguments: int) -> object:
        self.shards.paths[-1].unlink()
        os.mkfifo(self.shards.paths[-1])
        return load(self, *arguments)

    TrainingBatches.load = hanging


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silence", type=float, default=30.0, help="run.silence in seconds")
    silence = parser.parse_args().silence
    print(f"run.silence = {silence:g} s\n\n| case | named by all after | all ended after | exit codes | left |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setup = write_setup(Path(folder))
        for i, case in enumerate(CASES):
            show(str(case), lose(setup, setup / f"run-{i}", case, silence))
        if reason := why_not():
            print(f"no host is cut off: {reason}")
        else:
            show("host of process 1 cut off", cut_off(setup, setup / "hosts", silence))


def show(name: str, end: Outcome) -> None:
    """A row of the table."""
    codes = ", ".join(map(str, end.codes))
    print(f"| {name} | {end.named:.1f} s | {end.ended:.1f} s | {codes} | {len(end.left)} |", flush=True)


if __name__ == "__main__":
    main()
