"""Saving where it cannot be done, by real faults: one clear error on every process, and nothing lost."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_run import finish, finish_together, start, wait_for_step, write_setup

from checkpoint import complete, damage
from durable import make_folder, need_free, replace_text, stored_bytes, write_tensors
from folder import locked

LIMIT = 1 << 20  # bytes of a file; parameters and optimizer states are larger, random states smaller


def limit_files():
    """Called in a training process before it begins: of LIMITED, files cannot grow past LIMIT."""
    if os.environ.get("RANK", "0") == os.environ["LIMITED"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("errors"))


@contextmanager
def mounted(folder, *options):
    """A mount on `folder`, or a skip where that is not allowed."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounts need root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder):
    """Nothing can be written in `folder`, by root neither."""
    if os.geteuid():
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
    else:
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield


def error(printed):
    """The one line that says what went wrong."""
    (line,) = (x for x in printed.splitlines() if x.startswith("train.py: "))
    assert "Traceback" not in printed
    return line


def assert_intact(run, *steps):
    """Whole checkpoints of these steps, and nothing else."""
    folder = run / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [f"step-{step:08d}" for step in steps]
    assert [damage(path) for path in complete(folder)] == [""] * len(steps)


# -- saving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "limited"), [(2, 1), (1, 0)])
def test_an_error_on_one_process_ends_all(setup, tmp_path, count, limited):
    run = tmp_path / "run"
    finish_together(setup, run, count, "--run.stop-after", "4")
    env = {"BEFORE_TRAINING": "test_save_errors:limit_files", "LIMITED": str(limited)}
    for printed in finish_together(setup, run, count, "--resume", code=2, **env):
        line = error(printed)
        assert "the checkpoint of step 8 cannot be saved (those before are intact): " in line
        assert line.count("process ") == 1
        assert (
            f"process {limited} on {os.uname().nodename}: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}" in line
        )
    assert_intact(run, 4)
    finish_together(setup, run, count, "--resume", "--run.stop-after", "5")
    assert_intact(run, 4, 5)


def test_a_disk_without_room_is_told_before_writing(setup, tmp_path):
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=40m", "tmpfs"):  # a checkpoint has 26 MB
        line = error(finish(setup, tmp_path / "run", code=2))
        assert "the checkpoint of step 8 cannot be saved (those before are intact): " in line
        assert "it needs about 2" in line
        assert "MB free" in line
        assert_intact(tmp_path / "run", 4)


def test_a_disk_that_is_full_after_all(setup, tmp_path):
    """Room for bytes but not for files, which asking for room does not show."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=200m,nr_inodes=15", "tmpfs"):
        line = error(finish(setup, tmp_path / "run", code=2))
        assert "the checkpoint of step 8 cannot be saved (those before are intact): process 0 on " in line
        assert os.strerror(errno.ENOSPC) in line
        assert_intact(tmp_path / "run", 4)


def test_a_read_only_folder(setup, tmp_path):
    run = tmp_path / "run"
    finish(setup, run, "--run.stop-after", "4")
    with read_only(run / "checkpoints"):
        line = error(finish(setup, run, "--resume", code=2))
        assert "the checkpoint of step 8 cannot be saved" in line
        assert os.strerror(errno.EACCES if os.geteuid() else errno.EROFS) in line
    assert_intact(run, 4)
    with read_only(run):
        assert str(run) in error(finish(setup, run, "--resume", code=2))
    finish(setup, run, "--resume", "--run.stop-after", "5")
    assert_intact(run, 4, 5)


def test_a_checkpoint_that_cannot_be_removed_costs_none(setup, tmp_path):
    run = tmp_path / "run"
    finish(setup, run, "--run.stop-after", "4")
    old = run / "checkpoints" / "step-00000004"
    with mounted(old, "--bind", str(old)):  # what is mounted on cannot be renamed
        line = error(finish(setup, run, "--resume", "--run.keep", "1", code=2))
        assert "step-00000008 is saved, but what it replaces cannot be removed: process 0" in line
    assert_intact(run, 4, 8)
    finish(setup, run, "--resume", "--run.keep", "1")
    assert_intact(run, 12)


def test_no_disk_hides_its_reason():
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors({"x": torch.zeros(1 << 18)}, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "/dev/full"


def test_tensors_are_written_as_torch_does(tmp_path):
    content = {"x": torch.rand(70, 3), "y": [torch.arange(5)], "z": "words"}
    digest = write_tensors(content, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    assert digest == hashlib.sha256(whole).hexdigest()
    back = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(back["x"], content["x"])
    assert (back["y"][0].tolist(), back["z"]) == ([0, 1, 2, 3, 4], "words")


def test_bytes_of_tensors():
    whole = torch.zeros(100)
    assert stored_bytes({"a": [whole, whole[:10]], "b": (torch.zeros(3, dtype=torch.int64), "text")}) == 424


def test_room_is_asked_for(tmp_path):
    need_free(tmp_path, 1, "a byte")
    with pytest.raises(OSError, match=rf"^a copy needs about 1,000,000,000,000.0 MB, and {tmp_path} has"):
        need_free(tmp_path, 10**18, "a copy")


def test_text_is_replaced_whole(tmp_path):
    make_folder(tmp_path / "a" / "b")
    file = tmp_path / "a" / "b" / "c.json"
    replace_text(file, "first")
    replace_text(file, "second")
    assert [p.name for p in file.parent.iterdir()] == ["c.json"]
    assert file.read_text() == "second"


# -- one run in one folder --------------------------------------------------------------------------------


def test_two_runs_do_not_share_a_folder(setup, tmp_path):
    run = tmp_path / "run"
    first = start(setup, run, "--optim.epochs", "400")
    wait_for_step(run, 5)
    for resume in ([], ["--resume"]):
        line = error(finish(setup, run, "--optim.epochs", "400", *resume, code=2))
        assert f"{run} is in use by process {first.pid} on {os.uname().nodename} since " in line
    first.kill(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    finish(setup, run, "--optim.epochs", "400", "--resume", "--run.stop-after", "6")  # the kernel let go of it
    assert not (run / ".lock").exists()


def test_a_lock_on_a_file_that_its_holder_removed_is_none(tmp_path, monkeypatch):
    """The file goes between being opened and being locked: the next one would lock another file beside us."""
    path, lockf, opened = tmp_path / ".lock", fcntl.lockf, []

    def lock_late(descriptor, kind):
        if not opened:
            path.unlink()
        opened.append(descriptor)
        lockf(descriptor, kind)

    monkeypatch.setattr("fcntl.lockf", lock_late)
    with locked(path):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), path.stat())
        assert os.pread(opened[1], 99, 0).decode().startswith(f"process {os.getpid()} on ")
    assert not path.exists()


# -- what a run is pointed at -----------------------------------------------------------------------------


def test_data_that_moved_is_the_same_data(setup, tmp_path):
    run, shards = tmp_path / "run", tmp_path / "shards"
    shutil.copytree(setup / "shards", shards)
    finish(setup, run, "--data.train", str(shards), "--run.stop-after", "2")
    moved = shards.rename(tmp_path / "moved")
    for spelled in (f"{moved}/../moved", f"{moved}/shard-{{000000..000002}}.tar"):
        finish(setup, run, "--data.train", spelled, "--resume", "--run.stop-after", "3")
    assert json.loads((run / "config.json").read_text())["data"]["train"] == spelled
    (run / "inputs.json").unlink()  # of a version that did not write it: only the spelling tells
    printed = finish(setup, run, "--data.train", str(moved), "--resume", code=2)
    assert "holds a run of another configuration (data.train: " in error(printed)
