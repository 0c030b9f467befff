"""Sealed checkpoints: damage is found and passed over, kills leave nothing half, random states come back."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from small_run import finish, write_setup

import checkpoint
from checkpoint import complete, damage, newest
from journal import read_log


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def finished(setup):
    """A run of twelve steps with checkpoints at 4, 8 and 12, and its losses."""
    finish(setup, setup / "run")
    return setup / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy to break, stopped before its export."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    return tmp_path / "run"


def steps(run):
    return [int(path.name.removeprefix("step-")) for path in complete(run / "checkpoints")]


def flip(path, place=None):
    """Change one bit, by default in the middle."""
    data = bytearray(path.read_bytes())
    place = len(data) // 2 if place is None else place
    data[place] ^= 1
    path.write_bytes(data)


def resume(setup, run, *more, code=0):
    arguments = ("--resume", *more)
    return finish(setup, run, *arguments, code=code)


# -- what is found ----------------------------------------------------------------------------------------


def test_a_whole_checkpoint_has_no_damage(finished):
    path, problems = newest(finished / "checkpoints")
    assert path.name == "step-00000012"
    assert problems == []
    assert sorted(json.loads((path / "manifest.json").read_text())["files"]) == sorted(
        p.name for p in path.iterdir() if p.name != "manifest.json"
    )


@pytest.mark.parametrize("name", ["random-0.pt", "*model_states.pt", "*optim_states.pt"])
@pytest.mark.parametrize("how", ["first bit", "last bit", "cut", "longer", "empty", "gone", "a folder"])
def test_any_damage_of_a_file_is_found(run, name, how):
    (path,) = run.glob(f"checkpoints/step-00000012/{name}")
    if how == "first bit":
        flip(path, 0)
    elif how == "last bit":
        flip(path, path.stat().st_size - 1)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
    assert path.name in damage(path.parent)
    assert newest(run / "checkpoints")[0].name == "step-00000008"


def test_any_flipped_bit_of_the_manifest_is_found_or_means_nothing(run):
    """A step number or a checksum changed by one bit would otherwise pass for another one."""
    path = run / "checkpoints" / "step-00000012" / "manifest.json"
    whole = path.read_bytes()
    meaning = json.loads(whole)
    for place in range(len(whole)):
        flip(path, place)
        if not damage(path.parent):
            assert json.loads(path.read_bytes()) == meaning, place
        path.write_bytes(whole)
    assert damage(path.parent) == ""


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b'{"files": 3, "sha256": ""}', b"\xff", b"[" * 100_000]
)
def test_any_other_manifest_is_damage(run, content):
    path = run / "checkpoints" / "step-00000012" / "manifest.json"
    path.write_bytes(content)
    assert damage(path.parent)


def test_nothing_to_find(tmp_path):
    assert newest(tmp_path / "none") == (None, [])


# -- what a run does about it -----------------------------------------------------------------------------


def test_damaged_checkpoints_are_passed_over_with_a_warning(setup, finished, run):
    flip(next(run.glob("checkpoints/step-00000012/*optim_states.pt")))
    (run / "checkpoints" / "step-00000008" / "manifest.json").unlink()
    printed = resume(setup, run)
    for name, reason in (("12", "optim_states.pt does not match its checksum"), ("08", "FileNotFoundError")):
        line = next(x for x in printed.splitlines() if f"step-000000{name}" in x and "warning" in x)
        assert line.startswith("warning: damaged checkpoint left aside: ")
        assert reason in line
    logs = [[(r["step"], r["loss"]) for r in read_log(x / "log.jsonl")] for x in (finished, run)]
    assert logs[0] == logs[1]
    assert all(damage(path) == "" for path in complete(run / "checkpoints"))  # written anew
    for name in ("open_clip_model.safetensors", "hyperbolic.safetensors"):
        assert (run / "model" / name).read_bytes() == (finished / "model" / name).read_bytes()


def test_with_every_checkpoint_damaged_it_refuses_to_start_over(setup, run):
    for path in run.glob("checkpoints/step-*/random-0.pt"):
        flip(path)
    printed = resume(setup, run, code=2)
    (line,) = (x for x in printed.splitlines() if x.startswith("train.py: "))
    assert "no whole checkpoint in" in line
    assert line.count("random-0.pt does not match its checksum") == 3
    assert "start anew in another folder" in line
    assert steps(run) == [4, 8, 12]


def test_damaged_later_checkpoints_do_not_push_out_whole_ones(setup, run):
    for step in (8, 12):
        flip(run / "checkpoints" / f"step-{step:08d}" / "random-0.pt")
    resume(setup, run, "--run.stop-after", "5", "--run.keep", "1")
    path, problems = newest(run / "checkpoints")
    assert path.name == "step-00000005"
    assert len(problems) == 2


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(setup, run):
    left = run / "checkpoints" / ".step-00000016.partial"
    shutil.copytree(run / "checkpoints" / "step-00000012", left)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    assert newest(run / "checkpoints")[0].name == "step-00000008"
    resume(setup, run, "--run.keep", "2")
    assert not left.exists()
    assert steps(run) == [8, 12]


def test_a_file_under_a_hidden_name_is_swept_too(tmp_path):
    (tmp_path / ".step-00000004.old").write_text("stood where a checkpoint goes")
    (tmp_path / ".step-00000008.partial").mkdir()
    (tmp_path / "step-00000008").mkdir()
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_random_states_come_back():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves a second number waiting
    np.random.standard_normal()
    state = checkpoint._random_state()
    first = draw()
    assert draw() != first
    checkpoint._set_random_state(state)
    assert draw() == first
