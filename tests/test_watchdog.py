"""Who dies or stops is named by all, and all end: real signals to real processes, and the rules one by one."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from losing import CASES, alive, children, lose
from small_run import (
    ROOT,
    arguments,
    environment,
    start,
    start_together,
    wait_for_step,
    write_pictures,
    write_setup,
)

from bioclip_hc.data.workers import IDLE, Workers

from journal import read_log
from watchdog import (
    EXIT_ERROR,
    EXIT_LOST,
    READING,
    Clock,
    Identity,
    Link,
    Peer,
    Place,
    Watch,
    WorkerWatch,
    own_identity,
)

ENDLESS = ("--optim.epochs", "1000", "--run.save-every", "0")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("watched"))


def events(output, kind):
    lines = (output / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if f'"event": "{kind}"' in line]


# -- real ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_lost_one_is_named_by_all_that_live_and_nothing_stays_behind(setup, tmp_path, case):
    end = lose(setup, tmp_path / "run", case, silence=2)
    assert end.left == []
    assert end.ended < 30
    living = [0, 1] if case.who == "worker" else [1 - case.process]
    assert [end.codes[i] for i in living] == [EXIT_LOST] * len(living)
    if case.who == "process":
        assert end.codes[case.process] == -signal.SIGKILL
    victim = f"process {case.process} (host {socket.gethostname()}, pid "
    if case.who == "worker":
        how = r"died by signal 9 \(Killed\)" if case.signal == signal.SIGKILL else r"has not moved for \d+ s"
        message = rf"data worker 0 \(pid {end.victim}\) of {re.escape(victim)}\d+\) {how} at step \d+, \S.*; it was"
    else:
        how = "died" if case.signal == signal.SIGKILL else r"has been silent for \d+ s"
        message = rf"{re.escape(victim)}{end.victim}\) {how}; its last sign was at step \d+, \S.*; process"
    for i in living:
        (line,) = (line for line in end.printed[i].splitlines() if line.startswith("train.py: "))
        assert re.match(f"train.py: {message}", line), line
        assert re.search(rf"; process {i} ends with code 75 \(at step [1-9]\d*, \S.*\); go on with --resume$", line)
        assert "Traceback" not in end.printed[i]
    if 0 in living:
        (lost,) = events(tmp_path / "run", "lost")
        assert lost["process"] == case.process
        assert re.match(message.removesuffix("; process"), lost["message"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_to_its_end_is_named(setup, tmp_path, workers):
    shards, output = write_pictures(tmp_path / "shards"), tmp_path / "run"
    more = ("--data.train", str(shards), "--run.silence", "1", "--data.workers", str(workers))
    run = start(setup, output, *more, BEFORE_TRAINING="losing:last_shard_hangs")
    assert run.wait() == EXIT_LOST
    (line,) = (line for line in run.printed.splitlines() if line.startswith("train.py: "))
    who = r"data worker 0 \(pid \d+\) of process 0" if workers else "process 0"
    assert re.match(
        rf"train.py: {who} \(host \S+, pid \d+\) has not moved for \d+ s at step 1, reading data; ", line
    )
    sample = re.search(r"it was reading sample (\d+): (\S+), '(\w+)'; process 0 ends", line)
    assert int(sample[1]) >= 40
    assert sample[2] == str(shards / "shard-000002.tar")
    assert sample[3] == f"photo{int(sample[1]):04d}"


def test_an_error_of_one_process_ends_the_others_with_its_reason(setup, tmp_path):
    output = tmp_path / "run"
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    more = ("--run.silence", "60")
    good = start(setup, output, *more, **place, RANK="0", LOCAL_RANK="0")
    bad = start(setup, output, *more, "--data.train", "nowhere", **place, RANK="1", LOCAL_RANK="1")
    assert bad.wait(30) == 2
    assert good.wait(30) == EXIT_ERROR
    message = rf"process 1 \(host \S+, pid {bad.pid}\) ended by an error at step 0, bringing shards: FileNotFound"
    assert re.search(message, good.printed)
    assert "nowhere" in good.printed
    assert not re.search(message, bad.printed)  # which has said so in its own words


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_run_that_is_stopped_and_continued_as_a_whole_goes_on(setup, tmp_path):
    output = tmp_path / "run"
    runs = start_together(setup, output, 2, "--run.silence", "1", "--optim.epochs", "5", "--data.workers", "1")
    wait_for_step(output, 1)
    everyone = [pid for run in runs for pid in (run.pid, *children(run.pid))]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in everyone:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(2.5)
    assert [run.wait() for run in runs] == [0, 0]
    assert "train.py: " not in "".join(run.printed for run in runs)
    assert read_log(output / "log.jsonl")[-1]["step"] == 20


@pytest.mark.slow
def test_under_torchrun(setup, tmp_path):
    output = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = (*ENDLESS, "--run.silence", "3", "--data.workers", "1")
    command = [*launcher, str(ROOT / "train" / "train.py"), *arguments(setup, output, *more)]
    run = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(output, 2, seconds=120)
    processes = children(run.pid)
    pids = processes + [worker for pid in processes for worker in children(pid)]
    os.kill(processes[1], signal.SIGSTOP)
    printed, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert re.search(rf"train.py: process \d \(host \S+, pid {processes[1]}\) has been silent for", printed)
    assert not [pid for pid in pids if alive(pid)]


# -- the rules --------------------------------------------------------------------------------------------


def test_only_the_same_process_is_killed():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        own = own_identity(0)
        its = own._replace(pid=sleeper.pid, started=identity_of(sleeper.pid).started)
        for other in (its._replace(started=its.started - 1), its._replace(system="another host")):
            other.kill()
        time.sleep(0.05)
        assert sleeper.poll() is None
        os.kill(sleeper.pid, signal.SIGSTOP)
        its.kill()
        assert sleeper.wait(10) == -signal.SIGKILL
        its.kill()  # and is none the worse for being gone
    finally:
        sleeper.kill()
        sleeper.wait()


def identity_of(pid):
    import watchdog

    return own_identity(0)._replace(pid=pid, started=watchdog._started(pid))


def test_time_in_which_the_observer_did_not_run_does_not_count(monkeypatch):
    real = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: real[0])
    clock = Clock(limit=2.0)
    for elapsed, now in ((1.5, 1.5), (600.0, 3.5), (0.5, 4.0)):
        real[0] += elapsed
        assert clock.tick() == now


PROCESS = Identity(3, "gpu04", 77, 1, "boot")


def test_an_error_without_words_is_its_name():
    watch = Watch(0)
    with pytest.raises(KeyboardInterrupt), watch:
        raise KeyboardInterrupt
    assert watch._last_word.message.endswith("ended by an error at step 0, starting: KeyboardInterrupt")


def test_what_is_wrong_with_a_peer():
    peer = Peer(PROCESS)
    peer.heard = 10.0
    assert peer.complaint(39.9, silence=30) is None
    silent = peer.complaint(41.0, silence=30)
    assert silent.message == "process 3 (host gpu04, pid 77) has been silent for 31 s; it never gave a sign"
    assert (silent.process, silent.code, silent.kill) == (3, EXIT_LOST, True)
    peer.place, peer.lost = Place(17, READING), ""
    died = "process 3 (host gpu04, pid 77) died; its last sign was at step 17, reading data"
    assert peer.complaint(10.0, silence=30).message == died
    peer.lost = "Connection reset by peer"
    assert (
        "the connection to process 3 (host gpu04, pid 77) broke (Connection reset by peer); its last sign"
        in str(peer.complaint(10.0, silence=30))
    )
    peer.left = True
    assert peer.complaint(1000.0, silence=30) is None


def note(workers, worker, moves, step, sample):
    workers._rows[worker] = workers._rows.new_tensor([moves, step, sample])


@pytest.fixture
def watched():
    """A WorkerWatch of two workers that have begun at step 10, without processes, and their rows to write."""
    workers = Workers(2, start=10)
    workers.died, workers.pid = list, lambda worker: 500 + worker
    shards = SimpleNamespace(shard=lambda i: "a.tar", key=lambda i: f"key{i}")
    return WorkerWatch(SimpleNamespace(workers=workers, shards=shards), silence=30), workers


def test_a_worker_that_reads_on_is_left_alone_and_one_that_does_not_is_named(watched):
    watch, workers = watched
    for now in range(0, 200, 20):
        note(workers, 0, now, 10, now)
        note(workers, 1, now, 11, IDLE)
        assert watch.complaint(PROCESS, Place(11, "training"), 0, now) is None
    for now in range(200, 240, 20):
        note(workers, 1, now, 11, IDLE)
        end = watch.complaint(PROCESS, Place(11, "training"), 0, now)
    assert end.message == (
        "data worker 0 (pid 500) of process 3 (host gpu04, pid 77) has not moved for 40 s at step 11, training; "
        "it was reading sample 180: a.tar, 'key180'"
    )
    assert (end.process, end.code, end.kill) == (3, EXIT_LOST, False)


def test_an_idle_worker_is_missed_only_by_who_waits_for_its_batch(watched):
    watch, workers = watched
    assert [workers.maker_of(step) for step in (10, 11, 12)] == [0, 1, 0]
    for now in range(0, 100, 10):
        assert watch.complaint(PROCESS, Place(12, "training"), 0, now) is None
    assert watch.complaint(PROCESS, Place(12, READING), 90, 120) is None  # since when it is waited for
    end = watch.complaint(PROCESS, Place(12, READING), 90, 121)
    assert end.message.startswith("data worker 1 (pid 501)")
    assert end.message.endswith("has not moved for 31 s at step 12, reading data; it was between two samples")


def test_no_silence_is_too_long_where_it_is_off(watched):
    watch, workers = watched
    watch._silence = 0
    note(workers, 0, 1, 10, 5)
    for now in (0, 1000):
        assert watch.complaint(PROCESS, Place(11, READING), 0, now) is None
    workers.died = lambda: [(1, -9)]
    assert "data worker 1 (pid 501) of process 3 (host gpu04, pid 77) died by signal 9 (Killed)" in str(
        watch.complaint(PROCESS, Place(11, READING), 0, 1000)
    )


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"3\n",
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        b"\xff\n",
        b'{"kind": "hello", "process": 1, "token": "guessed"}\n',
        b'{"kind": "hello", "process": 2, "token": "secret"}\n',
        b'{"kind": "hello", "process": [], "token": "secret"}\n',
        b'{"kind": "hello", "token": "secret"}\n',
        b'{"kind": "end", "end": ["stop", 1, 1, false]}\n',
    ],
    ids=lambda said: said[:30].decode(errors="replace"),
)
def test_strangers_are_shown_the_door(said):
    watch = Watch(5)
    watch._peers, watch._token = {1: Peer(PROCESS)}, "secret"
    inside, outside = socket.socketpair(socket.AF_UNIX)
    watch._attend(plain_link(inside))
    outside.settimeout(5)
    with contextlib.suppress(BrokenPipeError):
        for begin in range(0, len(said), 50_000):
            outside.sendall(said[begin : begin + 50_000])
            watch._hear(0)
    outside.shutdown(socket.SHUT_WR) if said.startswith(b"GET") else None
    watch._hear(0)
    assert outside.recv(1) == b""
    assert watch._peers[1].link is None
    assert watch._verdict is None
    watch._close()


def plain_link(connection):
    link = Link.__new__(Link)
    connection.setblocking(False)
    link.socket, link._rest = connection, b""
    return link
