"""What ships in train/: every configuration is valid, every script parses."""

import os
import subprocess

import pytest
from small_run import ROOT

from config import read_config

CONFIGS = sorted((ROOT / "train" / "configs").glob("*.toml"))
SCRIPTS = sorted((ROOT / "train" / "launch").glob("*.s*"))


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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
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
