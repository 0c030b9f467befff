"""What ships in train/: every configuration is valid, and the Slurm script saves, requeues and resumes."""

import os
import subprocess

import pytest
from small_run import ROOT

from config import read_config

CONFIGS = sorted((ROOT / "train" / "configs").glob("*.toml"))
SLURM = ROOT / "train" / "launch" / "two_nodes.slurm"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    config = read_config(path, ["--data.train", "shards", "--run.output", "out"])
    if config.model.architecture.endswith(".json"):
        assert os.path.isfile(config.model.architecture)


def test_the_recipes_are_the_published_ones():
    recipe = {path.stem: read_config(path) for path in CONFIGS if path.stem.startswith("vitb16")}
    assert len(recipe) == 4
    card, paper = recipe["vitb16_tol10m"], recipe["vitb16_paper"]
    assert (card.optim.global_batch, card.optim.epochs, card.optim.warmup) == (32768, 100, 1000)
    assert (paper.optim.global_batch, paper.optim.epochs, paper.optim.warmup) == (4096, 30, 300)
    for name, config in recipe.items():
        assert (config.optim.lr, config.optim.weight_decay, config.run.precision) == (1e-4, 0.2, "fp16")
        assert config.model.geometry == ("euclidean" if name.endswith("euclidean") else "lorentz")
        assert not config.model.learnable_curv


@pytest.mark.parametrize("path", sorted((ROOT / "train" / "launch").iterdir()), ids=lambda path: path.name)
def test_launch_scripts_parse(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_one_node_passes_its_arguments_on(tmp_path):
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/call"\n')
    (tmp_path / "torchrun").chmod(0o755)
    script = ROOT / "train" / "launch" / "one_node.sh"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(script), "run.toml", "--data.train", "two words"], env=env, check=True)
    call = (tmp_path / "call").read_text().splitlines()
    assert os.path.samefile(call[-4], ROOT / "train" / "train.py")
    assert call[-3:] == ["run.toml", "--data.train", "two words"]


@pytest.mark.parametrize(
    ("code", "restarts", "ends", "requeued"), [(143, "0", 0, True), (0, "1", 0, False), (1, "0", 1, False)]
)
def test_the_slurm_script_requeues_and_resumes(tmp_path, code, restarts, ends, requeued):
    stubs = {
        "scontrol": 'echo "scontrol $@" >> calls; [ "$1" = show ] && printf "node1\\nnode2\\n"; true',
        "srun": f'echo "srun $MASTER_ADDR $@" >> calls; exit {code}',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": restarts,
    }
    run = subprocess.run(["bash", str(SLURM), "run.toml", "--optim.lr", "1e-5"], cwd=tmp_path, env=env, check=False)
    calls = (tmp_path / "calls").read_text()
    assert run.returncode == ends
    assert "srun node1 --kill-on-bad-exit=0 bash -c" in calls
    assert f"train run.toml {'--resume ' if restarts == '1' else ''}--optim.lr 1e-5" in calls
    assert ("scontrol requeue 7" in calls) == requeued
