"""Starting a run: what each launcher says, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from slurm import Job
from small_run import ROOT, arguments, environment, write_setup

from world import place, world

sys.path.insert(0, str(ROOT / "train" / "launch"))
import task

JOB = {"SLURM_JOB_ID": "32007", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
STEP = {**JOB, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[03-04]"}


def scontrol(folder, monkeypatch, body):
    (folder / "scontrol").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_without_a_launcher_it_is_a_world_of_one():
    for said in ({}, {"WORLD_SIZE": "1", **STEP}, {"SLURM_NTASKS": "1", "PMI_SIZE": "1"}):
        found = place(said)
        assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("0", "1", "0")
        assert 1024 < int(found["MASTER_PORT"]) < 65536


def test_what_torchrun_and_deepspeed_say_stands():
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500", **STEP}
    assert place(said) == {}
    del said["LOCAL_RANK"], said["MASTER_PORT"]
    with pytest.raises(ValueError, match="RANK is set, but not LOCAL_RANK, MASTER_PORT; set them too"):
        place(said)


def test_a_task_of_srun_takes_its_place_from_slurm(tmp_path, monkeypatch):
    scontrol(tmp_path, monkeypatch, '[ "$*" = "show hostnames gpu[03-04]" ] && printf "gpu03\\ngpu04\\n"')
    found = place(STEP)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("5", "8", "1")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("gpu03", "15007")
    given = place({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "4000")
    assert place({**STEP, "SLURM_JOB_ID": "32008"})["MASTER_PORT"] == "15008"  # jobs that share a node do not meet


def test_a_process_that_sees_its_gpu_alone_takes_it(monkeypatch):
    """As `srun --gpus-per-task=1` shows them: each is the first."""
    taken = []
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for count in (4, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with world(0):
            pass
    assert taken == [3, 0]
    assert os.environ["LOCAL_RANK"] == "0"  # DeepSpeed reads it too
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="process 3 is number 3 on its host, from 0, and sees 2 GPUs"), world(0):
        pass


@pytest.mark.parametrize("body", ["exit 1", "true"])
def test_a_container_without_slurm_says_what_to_set(tmp_path, monkeypatch, body):
    scontrol(tmp_path, monkeypatch, body)
    with pytest.raises(ValueError, match="set MASTER_ADDR to its name"):
        place(STEP)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (JOB, "this Slurm job has 8 tasks, but train.py was started without srun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "MPI started 4 processes"),
        ({"PMI_SIZE": "2"}, "MPI started 2 processes"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
    ],
)
def test_processes_that_know_nothing_of_each_other_do_not_train(said, message):
    with pytest.raises(ValueError, match=message):
        place(said)


# -- Slurm -------------------------------------------------------------------------------------------------

SCRIPT = ROOT / "train" / "launch" / "two_nodes.slurm"
MODEL = ("open_clip_model.safetensors", "hyperbolic.safetensors", "taxonomy.json")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Shards, configuration, and a repository, all below a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("two words")
    (folder / "train").symlink_to(ROOT / "train")
    script = SCRIPT.read_text().replace("--ntasks-per-node=4", "--ntasks-per-node=1")
    (folder / "two_nodes.slurm").write_text(script)
    return write_setup(folder)


def submit(setup, folder, output, *more, hold=()):
    folder.mkdir()
    return Job(folder, setup, setup / "two_nodes.slurm", *arguments(setup, output, *more), hold=hold)


@pytest.fixture(scope="module")
def undisturbed(setup):
    job = submit(setup, setup / "undisturbed.job", setup / "undisturbed")
    assert job.run() == 0, job.printed
    assert job.requeued == 0
    return setup / "undisturbed"


def same_model(a, b):
    return all((a / "model" / name).read_bytes() == (b / "model" / name).read_bytes() for name in MODEL)


def at_step(output, step):
    log = output / "log.jsonl"
    return log.is_file() and f'"step": {step},' in log.read_text()


def test_a_job_preempted_twice_ends_as_one_that_was_not(setup, undisturbed, tmp_path):
    """The first signal comes to the tasks alone, as with proctrack/cgroup, the second to the workers too."""
    output, sent = tmp_path / "run", []

    def preempt(job):
        for number, step in enumerate((2, 6)):  # logged, and the next one is held
            if len(sent) == number == job.requeued and at_step(output, step):
                job.signal(signal.SIGCONT, signal.SIGTERM, everyone=number == 1)
                sent.append(step)

    job = submit(setup, tmp_path / "job", output, "--data.workers", "1", hold=(3, 7))
    assert job.run(preempt) == 0, job.printed
    assert (job.requeued, len(sent)) == (2, 2)
    assert [("--resume" in words) for words in job.sruns] == [False, True, True]
    assert all("--kill-on-bad-exit=1" in words and "--cpus-per-task=16" in words for words in job.sruns)
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    resumed = [r["step"] for r in log if r.get("event") == "resume"]
    assert [2 <= resumed[0] <= 3, 6 <= resumed[1] <= 7] == [True, True]
    steps = [r["step"] for r in log if "event" not in r]
    assert steps == list(range(1, 13))  # none lost, none repeated
    assert same_model(output, undisturbed)


@pytest.mark.parametrize("moment", ["at once", "config.json"])
def test_a_job_preempted_before_its_first_checkpoint_starts_over(setup, undisturbed, tmp_path, moment):
    output, sent = tmp_path / "run", []

    def preempt(job):
        if not sent and job.tasks and (moment == "at once" or (output / moment).is_file()):
            job.signal(signal.SIGCONT, signal.SIGTERM)
            sent.append(moment)

    job = submit(setup, tmp_path / "job", output)
    assert job.run(preempt) == 0, job.printed
    assert job.requeued == 1
    assert same_model(output, undisturbed)


def test_a_job_that_fails_does_not_requeue(setup, tmp_path):
    job = submit(setup, tmp_path / "job", tmp_path / "run", "--data.train", "nowhere")
    assert job.run() == 255
    assert job.requeued == 0
    assert "there is no" in job.printed
    assert "ended with code 2" in job.printed
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_task_that_is_killed_ends_the_others_and_the_job(setup, tmp_path):
    output, killed = tmp_path / "run", []

    def kill(job):
        if not killed and at_step(output, 2):
            children = Path(f"/proc/{job.tasks[1].pid}/task/{job.tasks[1].pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            killed.append(time.monotonic())

    job = submit(setup, tmp_path / "job", output, hold=(3,))
    assert job.run(kill) == 255
    assert time.monotonic() - killed[0] < 60
    assert job.requeued == 0
    assert "task 1 on" in job.printed
    assert "was killed by signal 9" in job.printed


def test_a_job_that_was_cancelled_does_not_requeue(setup, tmp_path):
    output = tmp_path / "run"

    def cancel(job):
        if job.state == "RUNNING" and at_step(output, 2):
            job.state = "CANCELLED"
            job.signal(signal.SIGCONT, signal.SIGTERM)

    job = submit(setup, tmp_path / "job", output, hold=(3,))
    assert job.run(cancel) == 143
    assert job.requeued == 0
    assert list((output / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("code", "told"), [(0, 0), (143, 143), (-15, 143), (-10, 143), (2, 255), (1, 255), (-9, 255), (-11, 255)]
)
def test_a_failure_is_never_taken_for_a_preemption(code, told):
    assert task.verdict(code) == told


# -- launchers, as docs/launch.md prints them --------------------------------------------------------------

TORCHRUN = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-id", "7", "--rdzv-endpoint", "localhost:{port}"]  # fmt: skip
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--hostfile", "{hosts}", "--no_ssh", "--node_rank", "{node}",
             "--master_addr", "127.0.0.1", "--master_port", "{port}"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_two_nodes_started_one_by_one(setup, tmp_path, launcher):
    """Each node is an agent of its own on this machine; they meet over the network alone."""
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    known = {"port": 20000 + os.getpid() % 10000, "hosts": tmp_path / "hosts"}
    training = [str(ROOT / "train" / "train.py"), *arguments(setup, tmp_path / "run")]
    agents = []
    for node in range(2):
        words = [word.format(node=node, **known) for word in launcher]
        with (tmp_path / f"node{node}.terminal").open("wb") as terminal:
            env = environment(DS_ACCELERATOR="cpu")
            command = [sys.executable, *words, *training]
            agents.append(subprocess.Popen(command, env=env, stdout=terminal, stderr=subprocess.STDOUT))
    codes = [agent.wait(timeout=200) for agent in agents]
    assert codes == [0, 0], (tmp_path / "node0.terminal").read_text()
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["world_size"] == 2
    assert at_step(tmp_path / "run", 12)
