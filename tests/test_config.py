"""The configuration: TOML and the command line into frozen dataclasses, with every mistake named."""

import dataclasses
import json

import pytest

from config import FREE_TO_CHANGE, POINTERS, Config, changed_keys, check, read_config

BASE = {"data": {"train": "shards"}, "run": {"output": "out"}}


def toml(tables: dict) -> str:
    lines = []
    for section, keys in tables.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines)


@pytest.fixture
def write(tmp_path):
    """Write BASE with some keys replaced; returns the path."""

    def write(**tables):
        merged = {s: {**BASE.get(s, {}), **tables.get(s, {})} for s in {**BASE, **tables}}
        path = tmp_path / "run.toml"
        path.write_text(toml(merged), encoding="utf-8")
        return path

    return write


def test_values_defaults_and_types(write):
    config = read_config(
        write(optim={"lr": 1, "epochs": 2.5}, data={"ranks": ["genus", "species"], "augmentation": {}},
              run={"trackers": ["tensorboard"]})
    )  # fmt: skip
    assert config.optim.lr == 1.0
    assert type(config.optim.lr) is float  # an integer stands for a number
    assert config.optim.epochs == 2.5
    assert config.data.ranks == ("genus", "species")
    assert config.run.trackers == ("tensorboard",)
    assert config.data.train == "shards"
    assert config.optim.beta2 == Config().optim.beta2


def test_the_command_line_overrides_the_file(write):
    path = write(optim={"lr": 1e-3, "warmup": 7})
    config = read_config(path, ["--optim.lr", "0.5", "--run.stop-after", "3", "--model.learnable-curv"])
    assert (config.optim.lr, config.optim.warmup, config.run.stop_after) == (0.5, 7, 3)
    assert config.model.learnable_curv


def test_it_is_frozen(write):
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_config(write()).optim.lr = 1


def test_an_architecture_beside_the_file_is_found(write, tmp_path):
    (tmp_path / "small.json").write_text("{}")
    assert read_config(write(model={"architecture": "small.json"})).model.architecture == str(
        tmp_path / "small.json"
    )
    assert read_config(write(model={"architecture": "ViT-B-32"})).model.architecture == "ViT-B-32"


MISTAKES = {
    "misspelt key": ({"optim": {"learning_rat": 1.0, "warmpu": 3}}, r"\[optim\] has no key 'learning_rat'"),
    "misspelt key, suggestion": ({"optim": {"warmpu": 3}}, r"no key 'warmpu'; did you mean 'warmup'\?"),
    "misspelt table": ({"modle": {"curv": 1.0}}, r"no key 'modle'; did you mean 'model'\?"),
    "unlike any key": ({"run": {"zzzz": 1}}, "no key 'zzzz'; it has output, seed, precision"),
    "unknown rank": ({"data": {"ranks": ["genuss"]}}, "genuss.*genus"),
    "rank twice": ({"data": {"ranks": ["genus", "genus"]}}, "names a rank twice"),
    "no rank": ({"data": {"ranks": []}}, "data.ranks is empty"),
    "not a list": ({"data": {"ranks": "genus"}}, "ranks must be a list, got 'genus'"),
    "list of another type": ({"data": {"ranks": [1]}}, "ranks must be of type str, got 1"),
    "not a number": ({"optim": {"lr": "fast"}}, "lr must be of type float, got 'fast'"),
    "a number for a switch": ({"loss": {"restrict": 1}}, "restrict must be of type bool, got 1"),
    "a switch for a number": ({"run": {"seed": True}}, "seed must be of type int, got True"),
    "a fraction for a count": ({"optim": {"warmup": 1.5}}, "warmup must be of type int, got 1.5"),
    "not a choice": ({"run": {"precision": "fp8"}}, "precision must be one of 'fp32', 'bf16', 'fp16', got 'fp8'"),
    "no shards": ({"data": {"train": ""}}, "data.train is empty; name the shards"),
    "no output": ({"run": {"output": ""}}, "run.output is empty; name a folder"),
    "batch below ranks": ({"optim": {"global_batch": 6}}, r"= 6 is smaller than the number of ranks \(7\)"),
    "fp16 without ZeRO": ({"run": {"precision": "fp16", "zero_stage": 0}}, "fp16.*zero_stage = 0.*use zero"),
    "no learning rate": ({"optim": {"lr": 0.0}}, "optim.lr must be above 0, got 0.0"),
    "negative decay": ({"optim": {"weight_decay": -1.0}}, "optim.weight_decay must not be negative, got -1.0"),
    "logs never": ({"run": {"log_every": 0}}, "run.log_every must be at least 1, got 0"),
    "no time for a sign": ({"run": {"silence": 0.5}}, "run.silence must be 0 or at least 1 second, got 0.5"),
    "keeps nothing": ({"run": {"keep": 0}}, "run.keep must be at least 1, got 0"),
    "more than all": ({"data": {"quarantine_limit": 1.5}}, r"quarantine_limit is a share in \[0, 1\], got 1.5"),
    "offload of what is not sharded": (
        {"run": {"offload": "optimizer", "zero_stage": 0}},
        "run.offload = 'optimizer' needs run.zero_stage = 1 or more, got 0",
    ),
    "offload of parameters": (
        {"run": {"offload": "parameters", "zero_stage": 2}},
        "run.offload = 'parameters' needs run.zero_stage = 3 or more, got 2",
    ),
    "clip in hyperbolic space": ({"loss": {"name": "clip"}}, "needs model.geometry = 'euclidean'"),
    "clip of all ranks": (
        {"loss": {"name": "clip"}, "model": {"geometry": "euclidean"}},
        "one caption per image; set data.sampler to 'uniform'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(write, name):
    tables, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_config(write(**tables))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["optim.lr", "optim.grad_clip", "optim.eps", "model.curv", "run.silence"])
def test_numbers_are_finite(write, tmp_path, key, value):
    expected = rf"^{key} must be a finite number, got {value}$"
    with pytest.raises(ValueError, match=expected):
        read_config(write(), [f"--{key.replace('_', '-')}={value}"])
    section, name = key.split(".")
    file = tmp_path / "finite.toml"
    table = "" if section == "run" else f"[{section}]\n"
    file.write_text(f'[data]\ntrain = "x"\n[run]\noutput = "y"\n{table}{name} = {value}')
    with pytest.raises(ValueError, match=expected):
        read_config(file)


def test_a_key_outside_its_table(tmp_path):
    (tmp_path / "run.toml").write_text("optim = 3")
    with pytest.raises(ValueError, match=r"'optim' is a table, write \[optim\]"):
        read_config(tmp_path / "run.toml")


@pytest.mark.parametrize("content", [b"[optim\nlr = 1", b"\xff\xfe", b"[optim]\nlr = 1\nlr = 2"])
def test_what_is_not_toml(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"run.toml is not TOML"):
        read_config(tmp_path / "run.toml")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.toml is not a file"):
        read_config(tmp_path / "nowhere.toml")


def test_a_misspelt_option_is_suggested(write, capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(write(), ["--optim.warmpu", "3"])
    assert caught.value.code == 2
    assert "--optim.warmup" in capsys.readouterr().err


def test_overrides_are_checked(write):
    with pytest.raises(ValueError, match="fp16"):
        read_config(write(), ["--run.precision", "fp16", "--run.zero-stage", "0"])


def test_a_tracker_that_is_not_installed(write, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="names 'wandb', which is not installed: pip install wandb"):
        read_config(write(run={"trackers": ["wandb"]}))


@pytest.mark.parametrize(("precision", "stage"), [("fp16", 1), ("fp16", 3), ("bf16", 0), ("fp32", 0)])
def test_combinations_that_work(precision, stage):
    config = Config()
    run = dataclasses.replace(config.run, output="out", precision=precision, zero_stage=stage)
    check(dataclasses.replace(config, data=dataclasses.replace(config.data, train="x"), run=run))


def test_changed_keys_name_what_makes_another_run(write):
    old = read_config(write()).to_dict()
    new = read_config(write(optim={"lr": 0.5}, data={"ranks": ["genus"]}, run={"log_every": 99}))
    changes = changed_keys(old, new)
    assert len(changes) == 2
    assert changes[0].startswith("data.ranks: ['kingdom'")
    assert changes[1] == "optim.lr: 0.0001 -> 0.5"


def test_changed_keys_after_an_upgrade(write):
    config = read_config(write())
    old = config.to_dict()
    del old["optim"]["eps"]  # a run of a version without this key
    assert changed_keys(old, config) == ["optim.eps: None -> 1e-06"]


def test_an_architecture_may_be_spelt_otherwise_where_its_content_is_compared(write, tmp_path):
    def changes(old, new, free=POINTERS):
        return changed_keys(
            read_config(write(model={"architecture": old})).to_dict(),
            read_config(write(model={"architecture": new})),
            free,
        )

    (tmp_path / "a.json").write_text("{}")
    assert changes("a.json", "/elsewhere/a.json") == []
    assert len(changes("a.json", "/elsewhere/a.json", frozenset())) == 1
    assert len(changes("folder", "/elsewhere/folder")) == 1
    assert len(changes("a.json", "ViT-B-32")) == 1


def test_keys_that_may_change_exist():
    assert {f"{s}.{k}" for s, keys in Config().to_dict().items() for k in keys} >= FREE_TO_CHANGE
