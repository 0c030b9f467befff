"""A part of `make security`: nothing is executed, nothing written outside, every end is one that is declared."""

import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest

from security import attempts
from security.attempts import Payload
from security.run import page, try_all
from security.sandbox import attempt

MECHANISMS = sorted({one.mechanism for one in attempts.all_of_them()})
LARGE = ("the largest", "30,000", "table of taxa:", "GiB", "256 MiB", "500 PNG")  # take long to make


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_few_inputs_of_each_mechanism_do_nothing(mechanism):
    all_of_it = [one for one in attempts.all_of_them() if one.mechanism == mechanism]
    light = [one for one in all_of_it if not any(word in one.name for word in LARGE)]
    for one, seen in try_all(light[:: max(1, len(light) // 3)][:3]):
        assert seen.safe, (one.name, seen)


def test_the_counts_that_are_published():
    tried = attempts.all_of_them()
    assert len(tried) >= 400
    assert len({(one.mechanism, one.name) for one in tried}) == len(tried)


ACTS = {
    "a shell": lambda folder: os.system("true"),
    "a process": lambda folder: subprocess.run(["true"], check=False),
    "a pickle": lambda folder: pickle.loads(pickle.dumps(Payload("system"))),
    "a pickle that evaluates": lambda folder: pickle.loads(pickle.dumps(Payload("eval"))),
    "a connection": lambda folder: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "a look-up": lambda folder: socket.getaddrinfo("localhost", 80),
}


@pytest.mark.parametrize("what", ACTS)
def test_what_is_executed_is_seen(what, tmp_path):
    seen = attempt(ACTS[what], tmp_path / "case")
    assert seen.executed
    assert not seen.safe


def test_what_is_written_outside_is_seen(tmp_path):
    assert attempt(lambda folder: (folder / "x").write_text("x"), tmp_path / "inside").safe
    for i, act in enumerate(
        (
            lambda folder: (folder.parent / "x").write_text("x"),
            lambda folder: (folder.parent / "y").mkdir(),
            lambda folder: (folder.parent / "z").symlink_to("x"),
            lambda folder: os.close(os.open(folder.parent / "w", os.O_CREAT | os.O_WRONLY)),
        )
    ):
        seen = attempt(act, tmp_path / str(i))
        assert seen.written
        assert not seen.safe


def test_an_undeclared_error_and_a_death_are_seen(tmp_path):
    assert attempt(lambda folder: 1 / 0, tmp_path / "a").end.startswith("UNDECLARED ZeroDivisionError")
    assert (
        attempt(lambda folder: os.kill(os.getpid(), 9), tmp_path / "b").end == "UNDECLARED end of the process: -9"
    )


def test_memory_is_measured(tmp_path):
    seen = attempt(lambda folder: len(bytearray(os.urandom(1)) * (200 << 20)), tmp_path / "a")
    assert 190 << 20 < seen.peak < 260 << 20


def test_the_table_counts_what_was_seen(tmp_path):
    tried = [one for one in attempts.all_of_them() if one.mechanism.startswith("markup")][:1]
    evil = tried[0]._replace(act=lambda folder: Path(folder.parent / "x").write_text("x"))
    text = page([*try_all(tried), (evil, attempt(evil.act, tmp_path / "a"))])
    assert "| all | 2 | 0 | 1 | 0 | 2 | 0 |" in text
    assert "Not as promised:" in text
