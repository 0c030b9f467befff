"""The record of samples that could not be used."""

import json
import multiprocessing
from pathlib import Path

from bioclip_hc.data.quarantine import BadSample, Quarantine, cause, told_by_cause


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


def test_a_share_is_judged_from_the_hundredth_sample_on():
    quarantine = Quarantine(limit=0.1)
    assert quarantine.over_limit(0, 99) == ""
    assert quarantine.over_limit(0, 100) == "100 of 100 samples were quarantined, more than the limit of 10%"
    assert quarantine.over_limit(450, 50) == ""
    assert quarantine.over_limit(449, 51) == "51 of 500 samples were quarantined, more than the limit of 10%"
    assert Quarantine(limit=1.0).over_limit(0, 500) == ""


def test_the_last_record_is_remembered():
    quarantine = Quarantine()
    assert quarantine.last is None
    for i in range(2):
        quarantine.record("s.tar", str(i), "zero bytes")
    assert quarantine.last == ("s.tar", "1", "zero bytes")
    assert (quarantine.used, quarantine.quarantined, quarantine.seen) == (0, 2, 2)


def test_causes_keep_what_is_no_number_of_the_case_and_the_first_is_told_in_full():
    assert cause("line 7: not UTF-8 at byte 12") == "line N: not UTF-8 at byte N"
    bad = [BadSample("t.csv, line 3", "", "no file 'a.jpg'"), BadSample("t.csv, line 4", "", "no file 'b.jpg'")]
    assert told_by_cause([BadSample("s.tar", "k", "no caption"), *bad]) == [
        "2: no file '...'; the first: t.csv, line 3: no file 'a.jpg'",
        "1: no caption; the first: s.tar k",
    ]
