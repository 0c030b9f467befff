"""The share of time spent waiting for data: measured, told while a run trains and at its end, with advice."""

import os

import pytest
import torch
import torch.distributed as dist
from small_run import finish, write_setup

import clock
from clock import Clock, advice
from journal import read_log


@pytest.fixture
def now(monkeypatch):
    """now[0]: seconds, which pass by being added to; a world in which no process waited longer."""
    time = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time[0])
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: None)
    return time


def step(clock, now, waits, trains):
    with clock.waiting():
        now[0] += waits
    now[0] += trains
    clock.samples += 10


def test_the_start_of_the_workers_does_not_count(now):
    clock = Clock()
    step(clock, now, waits=50, trains=2)
    assert clock.lap() == (5.0, 0.0)
    step(clock, now, waits=1, trains=3)
    step(clock, now, waits=1, trains=3)
    assert clock.lap() == (2.5, 0.25)
    assert clock.share == 0.2
    assert clock.laps == 2


def test_the_process_that_waits_most_decides(now, monkeypatch):
    """The others wait for it where their gradients meet."""
    clock = Clock()
    step(clock, now, waits=0, trains=4)
    step(clock, now, waits=1, trains=3)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: tensor.copy_(torch.tensor([6.0])))
    assert clock.lap()[1] == 0.75


def test_no_lap_no_share():
    assert Clock().share == 0.0


@pytest.mark.parametrize(
    ("share", "workers", "processes", "cores", "expected"),
    [
        (0.19, 0, 1, 8, ""),
        (0.5, 2, 1, 8, "raise data.workers, now 2 for each of 1 on 8 cores"),
        (0.5, 2, 4, 16, "raise data.workers, now 2 for each of 4 on 16 cores"),
        (0.5, 4, 4, 16, "data.workers, now 4 for each of 4 on 16 cores, can hardly be raised"),
        (1.0, 0, 2, 1, "give the run more cores"),
    ],
)
def test_advice(share, workers, processes, cores, expected):
    found = advice(share, workers, processes, cores)
    assert (found == "") == (expected == "")
    assert expected in found


def slow_pictures():
    """Called in the process of a run: every image takes a tenth of a second to load."""
    import time

    from bioclip_hc.data.preprocess import RandomCrop

    crop = RandomCrop.__call__
    RandomCrop.__call__ = lambda *arguments: time.sleep(0.1) or crop(*arguments)


def test_a_run_tells_that_it_waits(tmp_path):
    setup = write_setup(tmp_path / "setup")
    slow = {"BEFORE_TRAINING": "test_clock:slow_pictures"}
    printed = finish(setup, tmp_path / "run", "--run.log-every", "1", "--optim.epochs", "1", **slow)
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert all(record["waiting"] > 0.4 for record in records[1:])
    assert f"wait {records[-1]['waiting']:.0%}" in printed
    (last,) = (line for line in printed.splitlines() if line.startswith("waited     "))
    assert int(last.split()[1].strip("%")) > 40
    assert "% of the time is spent waiting for data; " in printed
    assert printed.count(f"data.workers, now 0 for each of 1 on {len(os.sched_getaffinity(0))} cores") == 2
