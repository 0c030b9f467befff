"""Two hosts: they train together with nothing said of networks, and one that is cut off ends the run on both."""

import os
import re
import time

import pytest
from hosts import start_on, two_hosts, why_not
from losing import alive, children
from small_run import wait_for_step, write_setup

from journal import read_log
from watchdog import EXIT_LOST
from world import interface

STEPS = 24
MORE = ("--optim.epochs", str(STEPS // 4), "--data.workers", "1", "--run.silence", "2")
TIMES = ("samples_per_second", "waiting", "eta")


@pytest.fixture(scope="module")
def hosts():
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(f"test{os.getpid()}") as both:
        yield both


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("hosts"))


def finish_on(hosts, setup, output, *more):
    runs = start_on(hosts, setup, output, *MORE, *more)
    assert [run.wait(120) for run in runs] == [0, 0], "\n".join(run.printed for run in runs)


def test_a_host_that_is_cut_off_ends_the_run_on_both_and_it_goes_on_exactly(hosts, setup, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish_on(hosts, setup, whole)
    runs = start_on(hosts, setup, cut, *MORE)
    wait_for_step(cut, 5)
    pids = [pid for run in runs for pid in (run.pid, *children(run.pid))]
    hosts[1].cut_off()
    assert [run.wait(60) for run in runs] == [EXIT_LOST, EXIT_LOST]
    for run, other, host in ((runs[0], runs[1], hosts[1]), (runs[1], runs[0], hosts[0])):
        lost = f"process {runs.index(other)} (host {host.name}, pid {other.pid}) has been silent for"
        assert lost in run.printed
        assert re.search(r"its last sign was at step [1-9]\d*, \S", run.printed)
    assert not [pid for pid in pids if alive(pid)]
    assert read_log(cut / "log.jsonl")[-1]["step"] < STEPS

    hosts[1].join()
    finish_on(hosts, setup, cut, "--resume")
    logs = [
        [{k: v for k, v in record.items() if k not in TIMES} for record in read_log(run / "log.jsonl")]
        for run in (whole, cut)
    ]
    assert len(logs[0]) == STEPS
    assert logs[0] == logs[1]
    for name in ("open_clip_model.safetensors", "hyperbolic.safetensors"):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes()


def test_an_interface_that_does_not_join_the_hosts_is_named(hosts, setup, tmp_path):
    runs = start_on(hosts, setup, tmp_path / "run", GLOO_SOCKET_IFNAME="lo")
    ended, end = {}, time.monotonic() + 120
    while not ended and time.monotonic() < end:
        ended = {rank: code for rank, run in enumerate(runs) if (code := run.ended(0.1)) is not None}
    ((rank, code),) = ended.items()  # of the two addresses gloo lets the higher one call
    assert code == 2
    runs[1 - rank].kill(9)  # it waits at an address of its own, where nobody can say that nobody will come
    runs[1 - rank].wait()
    (line,) = (line for line in runs[rank].printed.splitlines() if line.startswith("train.py: "))
    assert line.startswith(f"train.py: process {rank} of 2 does not reach the others (")
    assert f"process 0 being at {hosts[0].address}; name the network interface that joins the hosts in " in line
    assert line.endswith("on every host, which is lo here")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "nowhere.invalid", "::1"])
def test_on_one_host_the_interface_is_left_to_gloo(address):
    assert interface({"MASTER_ADDR": address, "MASTER_PORT": "29500"}) == {}


def test_an_interface_that_is_given_stands():
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "ib0"}
    assert interface(given) == {}
