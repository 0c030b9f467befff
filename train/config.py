"""The configuration of a run: TOML into frozen dataclasses, overridden from the command line, checked at once."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import tomllib
import types
import typing
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bioclip_hc.data.urls import shown, split_specs
from bioclip_hc.taxonomy import RANKS, rank_index


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    train: str = ""
    """Shards: a folder, a glob, or a brace range such as "tol/shard-{000000..000063}.tar"; several by commas. Files
    and ranges may be https://, hf://datasets/OWNER/NAME@COMMIT/..., s3:// (docs/data.md)."""
    cache: str = ""
    """Folder that remote shards are fetched into; empty: bioclip_hc/shards in $XDG_CACHE_HOME or ~/.cache."""
    taxonomy: str = ""
    """Table of taxa (.csv, .csv.gz, or a saved .json); empty: the taxa of the shards' own lineages. Captions
    that do not tell their lineage (open_clip's txt) are looked up in it."""
    synonyms: str = ""
    """Table (.csv, .csv.gz; columns synonym, accepted) for names that the taxonomy lacks."""
    ranks: tuple[str, ...] = RANKS
    """Ranks that supervise."""
    sampler: Literal["all", "balanced", "uniform", "deepest"] = "all"
    """Which known ranks supervise an image: all, or one of them (equal counts per rank, at random, the lowest)."""
    template: str = "an image of {}"
    """Text of a taxon; {} is replaced by its names."""
    form: Literal["path", "name"] = "path"
    """All names from the kingdom down, or the taxon's alone."""
    workers: int = 4
    """Loader processes per training process."""
    remainder: Literal["drop", "pad"] = "drop"
    """The (samples mod optim.global_batch) at the end of each epoch's own random order: left out, other ones each
    time; or in a last batch of their own, filled up with empty places, which supervise nothing."""
    quarantine_limit: float = 0.1
    """Share of unreadable samples of all processes above which training stops; judged with each line of the log."""
    augmentation: dict[str, Any] = field(default_factory=dict)
    """open_clip's AugmentationCfg: scale, ratio, color_jitter, ..."""

    def shown(self) -> str:
        """What is trained on, without users and signatures of its addresses."""
        return ",".join(map(shown, split_specs(self.train)))


@dataclass(frozen=True)
class Model:
    """The towers and the space."""

    architecture: str = "ViT-B-16"
    """A name of open_clip, a model configuration (.json, beside this file or a path), or a model folder."""
    pretrained: str = ""
    """open_clip's tag or a weights file to start a named architecture from."""
    geometry: Literal["lorentz", "euclidean"] = "lorentz"
    curv: float = 1.0
    """Curvature is -curv."""
    learnable_curv: bool = False
    """Let curv train between a tenth and ten times its start."""
    logit_scale: float = 0.0
    """Where the logit scale starts; 0: 1/0.07, or the pretrained weights' own in Euclidean space."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""


@dataclass(frozen=True)
class Loss:
    """The objective."""

    name: Literal["level", "clip"] = "level"
    """"level": level-restricted contrastive learning. "clip": CLIP on one caption per image."""
    targets: Literal["multi_positive"] = "multi_positive"
    rank_reduction: Literal["mean", "sum"] = "mean"
    direction_weight: float = 1.0
    image_weighting: Literal["standard", "balanced"] = "standard"
    restrict: bool = True
    per_process: bool = False
    """Each process' batch is a batch of its own, images and their texts, as in the authors' code. The log shows the
    loss of the first."""


@dataclass(frozen=True)
class Optim:
    """AdamW with linear warm-up and cosine decay to 0."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    """Not applied to biases, norms and scalars."""
    warmup: int = 1000
    """Steps of linear warm-up."""
    epochs: float = 100.0
    global_batch: int = 32768
    """Images of one step over all processes."""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0 clips nothing."""


@dataclass(frozen=True)
class Run:
    """Where and how it runs."""

    output: str = ""
    """Folder of this run: log, checkpoints, final model."""
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: what is sharded over processes (1 optimizer, 2 and gradients, 3 and parameters)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the host's memory: the optimizer's states (its step is made there), or the parameters too."""
    micro_batch: int = 0
    """Images, and packed texts, that a process encodes at a time (docs/cached_batch.md); 0: the whole batch."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or a gradient is not finite: end the run, or leave out the step."""
    threads: int = 0
    """CPU threads of one process; 0 leaves torch's choice."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 1000
    """Steps between checkpoints; 0 saves only at the end."""
    keep: int = 3
    """Checkpoints kept."""
    stop_after: int = 0
    """End this process after so many steps of the run, checkpoint saved; 0 goes to the end."""
    silence: float = 30.0
    """Seconds without a sign of a process, or of a data worker in a sample, after which the run ends; 0: never."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the log goes besides log.jsonl."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON types, as they are written and compared: addresses of shards show no secrets."""
        table = json.loads(json.dumps(dataclasses.asdict(self)))
        table["data"]["train"] = self.data.shown()
        return table


FREE_TO_CHANGE = {
    "data.cache", "data.workers", "run.output", "run.micro_batch", "run.on_nonfinite", "run.threads",
    "run.log_every", "run.save_every", "run.keep", "run.stop_after", "run.silence", "run.trackers",
}  # fmt: skip
"""Keys that a resumed run may change: they leave its numbers alone (run.micro_batch: but for the order of sums)."""

OFFLOAD_STAGE = {"none": 0, "optimizer": 1, "parameters": 3}
"""DeepSpeed moves to the host what it shards."""

OWN = frozenset({"data.cache", "data.workers", "run.output", "run.threads", "run.trackers"})
"""Keys that a process may have for itself; run.output is the first one's, and must be one folder."""

POINTERS = frozenset({"data.train", "data.taxonomy", "data.synonyms"})
"""Keys whose spelling is free where what they point at is compared instead."""


def read_config(path: str | Path, arguments: list[str] | None = None) -> Config:
    """The checked configuration of a TOML file, with command-line overrides such as --optim.lr 1e-3.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that does not exist (the nearest is suggested), a value of the wrong type, or a
            combination that cannot work.
        SystemExit: a command line that does not parse (tyro prints why), or --help.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration {path} is not a file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    config = _from_table(Config, table, str(path))
    if arguments:
        import tyro

        config = tyro.cli(Config, default=config, args=arguments, prog=f"train.py {path}")
    return check(_find_architecture(config, path.parent))


def check(config: Config) -> Config:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        ValueError: naming the key, the value and the fix.
    """
    data, model, loss, optim, run = config.data, config.model, config.loss, config.optim, config.run
    _need(data.train, "data.train is empty; name the shards (a folder, a glob or a brace range)")
    _need(data.taxonomy or not data.synonyms, "data.synonyms needs data.taxonomy, whose names it adds to")
    _need(run.output, "run.output is empty; name a folder for this run")
    _need(data.ranks, "data.ranks is empty; name at least one rank")
    for name in data.ranks:
        rank_index(name)
    _need(len(set(data.ranks)) == len(data.ranks), f"data.ranks names a rank twice: {data.ranks}")
    for key, value in _flat(config.to_dict()).items():
        _need(not isinstance(value, float) or math.isfinite(value), f"{key} must be a finite number, got {value}")
    for key, value in (("optim.lr", optim.lr), ("optim.epochs", optim.epochs), ("model.curv", model.curv)):
        _need(value > 0, f"{key} must be above 0, got {value}")
    for key, value in (
        ("optim.warmup", optim.warmup),
        ("optim.weight_decay", optim.weight_decay),
        ("optim.grad_clip", optim.grad_clip),
        ("model.logit_scale", model.logit_scale),
        ("data.workers", data.workers),
        ("run.micro_batch", run.micro_batch),
        ("run.save_every", run.save_every),
        ("run.stop_after", run.stop_after),
    ):
        _need(value >= 0, f"{key} must not be negative, got {value}")
    for key, value in (("run.log_every", run.log_every), ("run.keep", run.keep)):
        _need(value >= 1, f"{key} must be at least 1, got {value}")
    _need(run.silence == 0 or run.silence >= 1, f"run.silence must be 0 or at least 1 second, got {run.silence}")
    _need(
        0 <= data.quarantine_limit <= 1, f"data.quarantine_limit is a share in [0, 1], got {data.quarantine_limit}"
    )
    _need(
        optim.global_batch >= len(data.ranks),
        f"optim.global_batch = {optim.global_batch} is smaller than the number of ranks ({len(data.ranks)})",
    )
    _need(
        run.precision != "fp16" or run.zero_stage >= 1,
        "run.precision = 'fp16' with run.zero_stage = 0 does not move the parameters in DeepSpeed; "
        "use zero_stage 1, 2 or 3, or precision bf16",
    )
    _need(
        run.zero_stage >= OFFLOAD_STAGE[run.offload],
        f"run.offload = {run.offload!r} needs run.zero_stage = {OFFLOAD_STAGE[run.offload]} or more, "
        f"got {run.zero_stage}",
    )
    for name in run.trackers:
        _need(
            importlib.util.find_spec(name),
            f"run.trackers names {name!r}, which is not installed: pip install {name}",
        )
    if loss.name == "clip":
        _need(model.geometry == "euclidean", "loss.name = 'clip' needs model.geometry = 'euclidean'")
        _need(data.sampler != "all", "loss.name = 'clip' takes one caption per image; set data.sampler to "
              "'uniform', 'balanced' or 'deepest'")  # fmt: skip
    return config


def _need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def changed_keys(old: dict[str, Any], new: Config, free: Set[str] = frozenset()) -> list[str]:
    """Keys whose change would make a resumed run another run, as "key: old -> new"; `free` ones may differ.

    With any of them free, an architecture's .json may be spelt otherwise too; of a model folder the weights count.
    """
    before, after = _flat(old), _flat(new.to_dict())
    architectures = (str(table.get("model.architecture")) for table in (before, after))
    if free and all(name.endswith(".json") for name in architectures):
        free = free | {"model.architecture"}
    keys = sorted((before.keys() | after.keys()) - FREE_TO_CHANGE - free)
    return [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys if before.get(k) != after.get(k)]


def common_keys(config: Config) -> dict[str, Any]:
    """Key -> value of what all processes of a run must have alike."""
    return {key: value for key, value in _flat(config.to_dict()).items() if key not in OWN | POINTERS}


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in table.items() for key, value in keys.items()}


def _find_architecture(config: Config, folder: Path) -> Config:
    """A .json architecture may stand beside the configuration."""
    beside = folder / config.model.architecture
    if beside.suffix == ".json" and beside.is_file():
        return dataclasses.replace(config, model=dataclasses.replace(config.model, architecture=str(beside)))
    return config


def _from_table(cls: type, table: dict[str, Any], where: str) -> Any:
    """A dataclass from a TOML table; every key must be a field, and every value of its type."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(fields)}"
            raise ValueError(f"{where} has no key {key!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {key!r} is a table, write [{key}]")
            values[key] = _from_table(typing.cast(type, hints[key]), value, f"{where} [{key}]")
        else:
            values[key] = _of_type(hints[key], value, f"{where}: {key}")
    return cls(**values)


def _of_type(hint: Any, value: Any, where: str) -> Any:
    """The value as the field's type, or a ValueError that says what is expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_of_type(arguments[0], item, where) for item in value)
    if origin is dict:
        hint = dict
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, types.GenericAlias) or type(value) is not hint:
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value
