"""The record of samples that could not be used."""

import json
import multiprocessing
from pathlib import Path

import pytest

from bioclip_hc.data.quarantine import Quarantine


def append_many(path: Path, worker: int) -> None:
    quarantine = Quarantine(path, limit=1.0)
    for i in range(200):
        quarantine.record("s.tar", f"{worker}-{i}", "reason " * 50)


def test_processes_share_the_quarantine_file(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=append_many, args=(path, w)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 800
    assert set(lines[0]) == {"shard", "key", "reason"}


def test_too_many_bad_samples_stop_the_run(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", limit=0.1)
    for i in range(50):  # all bad, but too few to judge
        quarantine.record("s.tar", str(i), "zero bytes")
    quarantine.use(449)
    assert quarantine.seen == 499
    with pytest.raises(
        RuntimeError, match=r"51 of 500 samples were quarantined, more than the limit of 10%.*zero bytes"
    ):
        quarantine.record("s.tar", "last", "zero bytes")


def test_nothing_but_bad_samples_stops_at_the_hundredth():
    quarantine = Quarantine(None)
    for i in range(99):
        quarantine.record("s.tar", str(i), "zero bytes")
    with pytest.raises(RuntimeError, match="100 of 100 samples"):
        quarantine.record("s.tar", "99", "zero bytes")
