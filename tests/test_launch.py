"""Starting a run: what each launcher says, and what is refused."""

import pytest

from world import place

JOB = {"SLURM_JOB_ID": "32007", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
STEP = {**JOB, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[03-04]"}


def scontrol(folder, monkeypatch, body):
    (folder / "scontrol").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_without_a_launcher_it_is_a_world_of_one():
    for environment in ({}, {"WORLD_SIZE": "1", **STEP}, {"SLURM_NTASKS": "1", "PMI_SIZE": "1"}):
        found = place(environment)
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


@pytest.mark.parametrize("body", ["exit 1", "true"])
def test_a_container_without_slurm_says_what_to_set(tmp_path, monkeypatch, body):
    scontrol(tmp_path, monkeypatch, body)
    with pytest.raises(ValueError, match="set MASTER_ADDR to its name"):
        place(STEP)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (JOB, "this Slurm job has 8 tasks, but train.py was started without srun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "MPI started 4 processes"),
        ({"PMI_SIZE": "2"}, "MPI started 2 processes"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
    ],
)
def test_processes_that_know_nothing_of_each_other_do_not_train(environment, message):
    with pytest.raises(ValueError, match=message):
        place(environment)
