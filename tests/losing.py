"""Lose a process or a data worker of a training of two processes by a real signal, and see how the rest ends.

python tests/losing.py [--silence 30]        every case in turn: seconds until it is named, and until all ended
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from small_run import Run, start_together, wait_for_step, write_setup

from bioclip_hc.data.loader import TrainingBatches


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
    named: float  # seconds from the signal until the first process named the victim
    ended: float  # seconds from the signal until nothing was left
    printed: list[str]
    left: list[int]  # pids of what was left all the same


def lose(setup: Path, output: Path, case: Case, silence: float, workers: int = 1) -> Outcome:
    """Train with two processes, strike at the third step, wait for the end."""
    endless = ("--optim.epochs", "1000", "--run.save-every", "0")
    watched = ("--run.silence", str(silence), "--data.workers", str(workers))
    runs = start_together(setup, output, 2, *endless, *watched)
    wait_for_step(output, 3)
    pids = [run.pid for run in runs] + [child for run in runs for child in children(run.pid)]
    struck = runs[case.process]
    victim = struck.pid if case.who == "process" else children(struck.pid)[-1]
    os.kill(victim, case.signal)
    start = time.monotonic()
    return watch_the_end(runs, pids, victim, start, silence + 60)


def watch_the_end(runs: list[Run], pids: list[int], victim: int, start: float, seconds: float) -> Outcome:
    """Until all of `pids` are gone, or `seconds` have passed."""
    named = None
    while time.monotonic() < start + seconds:
        if named is None and any(f"(pid {victim})" in r.printed or f", pid {victim})" in r.printed for r in runs):
            named = time.monotonic() - start
        if not any(map(alive, pids)):
            break
        time.sleep(0.01)
    ended = time.monotonic() - start
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    codes = [run.wait() for run in runs]
    return Outcome(victim, codes, named or float("inf"), ended, [run.printed for run in runs], left)


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
    print(f"run.silence = {silence:g} s\n\n| case | named after | all ended after | exit codes | left |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setup = write_setup(Path(folder))
        for i, case in enumerate(CASES):
            end = lose(setup, setup / f"run-{i}", case, silence)
            codes = ", ".join(map(str, end.codes))
            print(f"| {case} | {end.named:.1f} s | {end.ended:.1f} s | {codes} | {len(end.left)} |", flush=True)


if __name__ == "__main__":
    main()
