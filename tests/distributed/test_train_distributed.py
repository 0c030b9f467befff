"""Two processes through torchrun train as one does, and a run of two resumes as two."""

import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from small_run import ROOT, arguments, environment, start, write_pictures, write_setup

from journal import read_log


def torchrun(setup, output, *more, code=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(ROOT / "train" / "train.py"), *arguments(setup, output, *more)]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert (run.returncode == 0) == (code == 0), run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("two"))


def test_two_processes_are_one(setup, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    command = [sys.executable, str(ROOT / "train" / "train.py"), *arguments(setup, alone)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    torchrun(setup, two, "--run.stop-after", "6")
    torchrun(setup, two, "--resume")
    logs = [{r["step"]: r for r in read_log(run / "log.jsonl")} for run in (alone, two)]
    assert logs[0].keys() == logs[1].keys()
    assert logs[0][1]["loss"] == pytest.approx(logs[1][1]["loss"], abs=2e-6)  # before any update
    for step, record in logs[0].items():  # later ones follow sums in another order
        assert record["loss"] == pytest.approx(logs[1][step]["loss"], abs=2e-3)
        assert record["used"] == logs[1][step]["used"]
    first, second = (load_file(run / "model" / "open_clip_model.safetensors") for run in (alone, two))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 2e-3, name  # a tenth of what twelve steps of 1e-3 can move


@pytest.mark.slow
def test_the_deepspeed_launcher(setup, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    command += [str(ROOT / "train" / "train.py"), *arguments(setup, output)]
    subprocess.run(command, env=environment(DS_ACCELERATOR="cpu"), check=True, capture_output=True, timeout=200)
    assert read_log(output / "log.jsonl")[-1]["step"] == 12
    assert (output / "model" / "open_clip_config.json").is_file()


@pytest.mark.parametrize(
    ("other", "unlike"),
    [
        (lambda folder: ("--run.log-every", "2", "--optim.lr", "0.5"), "optim.lr, run.log_every"),
        (lambda folder: ("--data.train", str(write_pictures(folder, count=24))), "shards"),
    ],
    ids=["another command", "other data"],
)
def test_processes_that_are_not_alike_are_refused(setup, tmp_path, other, unlike):
    """Else one would log, save or end alone while the others wait, or take samples of another order."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(30000 + os.getpid() % 10000)}
    words = ((), other(tmp_path / "shards"))
    runs = [
        start(setup, tmp_path / "run", *words[rank], **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    assert [run.wait() for run in runs] == [2, 2], runs[0].printed
    for run in runs:
        assert f"train.py: process 1 on {socket.gethostname()} has other {unlike} than process 0 on " in run.printed


def test_a_batch_that_does_not_divide_is_refused(setup, tmp_path):
    printed = torchrun(setup, tmp_path / "run", "--optim.global-batch", "13", code=2)
    assert "a global batch of 13 does not divide among 2 processes" in printed
