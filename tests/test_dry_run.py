"""--dry-run: what it measures and estimates, that it writes nothing, and that it fails where the run would."""

import os
import re
import tarfile
from pathlib import Path

import pytest
from small_run import finish, start, write_pictures, write_setup

import dry_run
from dry_run import Measured


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("setup"))


def slow_pictures() -> None:
    """Called in the process of a run: every image takes 30 ms to load."""
    import time

    from bioclip_hc.data.preprocess import RandomCrop

    crop = RandomCrop.__call__

    def slowly(*arguments):
        time.sleep(0.03)
        return crop(*arguments)

    RandomCrop.__call__ = slowly


def numbers(printed, pattern):
    found = re.search(pattern, printed)
    assert found, printed
    return [float(x) for x in found.groups()]


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_it_claims_and_writes_nothing(setup, tmp_path):
    (tmp_path / "scratch").mkdir()
    printed = finish(setup, tmp_path / "run", "--dry-run", TMPDIR=str(tmp_path / "scratch"))
    assert f"nothing was written to {tmp_path / 'run'}" in printed
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "scratch").iterdir())
    assert "warning: " not in printed


def test_it_estimates_checkpoints_as_they_come_out(setup, tmp_path):
    for stage in ("0", "1"):
        output, more = tmp_path / stage, ("--run.zero-stage", stage, "--optim.epochs", "0.5")
        finish(setup, output, *more)
        before = contents(output)
        printed = finish(setup, output, *more, "--dry-run")
        assert contents(output) == before
        assert f"{output} holds a run; --resume continues it" in printed
        (mebibytes,) = numbers(printed, r"estimated  ([\d.]+) MiB a checkpoint")
        (folder,) = (output / "checkpoints").glob("step-*")
        real = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert mebibytes * 2**20 == pytest.approx(real, rel=0.05)


def test_it_tells_a_loader_that_is_too_slow(setup, tmp_path):
    printed = finish(setup, tmp_path / "run", "--dry-run", BEFORE_TRAINING="test_dry_run:slow_pictures")
    one, waiting = numbers(
        printed, r"one every ([\d.]+) s from then on \(0 workers a process\)[^%]* ([\d]+)% of it"
    )
    assert one > 12 * 0.03
    assert waiting > 50
    assert f"advice     raise data.workers, now 0 for each of 1 on {len(os.sched_getaffinity(0))} cores" in printed
    several = finish(
        setup, tmp_path / "run", "--dry-run", "--data.workers", "2", BEFORE_TRAINING="test_dry_run:slow_pictures"
    )
    (every,) = numbers(several, r"one every ([\d.]+) s from then on \(2 workers")
    assert 12 * 0.03 / 2 * 0.9 < every < one  # two sleep at the same time
    (workers,) = numbers(several, r"of memory a process, ([\d.]+) [GM]iB its workers")
    assert workers > 0


def test_all_processes_take_part(setup, tmp_path):
    """Each has broken images to set aside."""
    write_pictures(tmp_path / "damaged", broken=range(0, 48, 2))
    damaged = ("--data.train", str(tmp_path / "damaged"))
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(10000 + os.getpid() % 10000)}
    output = tmp_path / "run"
    runs = [start(setup, output, "--dry-run", *damaged, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]
    assert [run.wait() for run in runs] == [0, 0], runs[0].printed
    assert runs[0].printed.count("two steps on 2 processes") == 1
    assert not output.exists()


def test_it_fails_where_the_run_would(setup, tmp_path):
    printed = finish(setup, tmp_path / "run", "--dry-run", "--optim.global-batch", "49", code=2)
    assert "48 samples do not fill one" in printed
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("cat.jpg", "cat.txt"):
            tar.add(setup / "run.toml", name)
    printed = finish(setup, tmp_path / "run", "--dry-run", "--data.train", tmp_path / "a.tar", code=2)
    assert "none of its samples has the tagged caption 'taxonTag.txt' (members found: jpg, txt)" in printed
    assert not (tmp_path / "run").exists()


def test_a_step_waits_for_what_is_slower():
    measured = Measured(9.0, 3.0, 2.0, 0, 0, 0, 0)
    assert dry_run.pace(measured, workers=0) == (5.0, pytest.approx(0.6))
    assert dry_run.pace(measured, workers=4) == (3.0, pytest.approx(1 / 3))
    assert dry_run.pace(measured._replace(batch=1.0), workers=4) == (2.0, 0.0)


def test_what_stands_in_the_way_of_writing_is_said(tmp_path):
    assert dry_run.problems(tmp_path / "new", tmp_path, 1, 2) == []
    (tmp_path / "notes.txt").touch()
    (others,) = dry_run.problems(tmp_path, tmp_path, 1, 2)
    assert others == f"{tmp_path} holds other files; give run.output a new or empty folder"
    (file,) = dry_run.problems(tmp_path / "notes.txt", tmp_path, 1, 2)
    assert file == f"{tmp_path / 'notes.txt'} is a file; give run.output a folder"
    (full,) = dry_run.problems(tmp_path / "new", tmp_path, 2 << 30, 1 << 30)
    assert full == f"{tmp_path} has 1.0 GiB for 2.0 GiB; make room, or lower run.keep"


def test_the_folder_asked_is_the_one_that_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run.nearest_folder(tmp_path / "a" / "b") == tmp_path
    assert dry_run.nearest_folder(Path("a/b")) == tmp_path
    assert dry_run.duration(7200.0) == "2.0 hours"
    assert dry_run.duration(1.5) == "1.50 seconds"


def test_memory_is_that_of_processes():
    assert 10 << 20 < dry_run.peak_resident_set() < 1 << 40
    assert 10 << 20 < dry_run.proportional_set(os.getpid()) <= dry_run.peak_resident_set()
    assert dry_run.proportional_set(1 << 30) == 0
