"""Work in several processes: in order, a bounded number ahead, and past a process that dies."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from small_run import environment

from bioclip_hc.data.parallel import AHEAD, in_order, usable_processes


def square(x):
    time.sleep(0.002 * (x % 3))  # later items end earlier
    return x * x


def deadly(x):
    if x in (5, 6):
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def refuse(x):
    raise ValueError(f"no {x}")


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes):
    assert list(in_order(square, range(40), processes)) == [x * x for x in range(40)]
    assert list(in_order(square, [], processes)) == []


def test_no_more_is_taken_than_is_needed():
    taken = []
    results = in_order(square, (taken.append(i) or i for i in itertools.count()), 2)
    assert [next(results) for _ in range(10)] == [x * x for x in range(10)]
    assert len(taken) <= 10 + 2 * AHEAD
    results.close()


def test_an_item_that_kills_its_process_is_told_and_the_others_are_not_lost():
    expected = [x if x not in (5, 6) else -x for x in range(20)]
    assert list(in_order(deadly, range(20), 2, died=lambda x: -x)) == expected
    with pytest.raises(OSError, match="the process that worked on 5 died"):
        list(in_order(deadly, range(20), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_through(processes):
    with pytest.raises(ValueError, match="no 0"):
        list(in_order(refuse, range(3), processes))


def test_processes_end_with_the_one_that_started_them():
    script = """
        import os, time
        from bioclip_hc.data.parallel import in_order
        def work(x):
            if x:
                time.sleep(600)
            return os.getpid()
        for pid in in_order(work, [0, 1, 2, 3], 2):
            print(pid, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while alive(worker):
        assert time.monotonic() < end, f"process {worker} is still there"
        time.sleep(0.1)


def test_there_is_a_core():
    assert 1 <= usable_processes() <= os.cpu_count()
