"""The folder of a run: whose it is, what the run began with, and its small files, each whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.shards import BadSample
from bioclip_hc.model import HierarchicalCLIP

import checkpoint
from config import Config, changed_keys


def claim_output(output: Path, config: Config, resume: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if any, and the damaged ones passed over.

    Raises:
        FileExistsError: the folder holds a run and --resume was not given, or holds other files.
        ValueError: --resume with a configuration that makes it another run, or nothing whole to resume from.
    """
    stored = output / "config.json"
    if not stored.is_file():
        if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise FileExistsError(f"{output} holds other files; give run.output a new or empty folder")
        dist.barrier()  # every process has looked before the first one writes
        output.mkdir(parents=True, exist_ok=True)
        return None, []
    if not resume:
        raise FileExistsError(
            f"{output} holds a run; add --resume to continue it, or give run.output another folder"
        )
    changes = changed_keys(json.loads(stored.read_text(encoding="utf-8")), config)
    if changes:
        raise ValueError(
            f"{output} holds a run of another configuration ({'; '.join(changes)}); restore these keys, or give "
            "run.output another folder"
        )
    found: list[Any] = [checkpoint.newest(output / "checkpoints") if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)  # one reads them all, and all agree
    saved, problems = found[0]
    if saved is None and problems:
        raise ValueError(f"no whole checkpoint in {output}: {'; '.join(problems)}; start anew in another folder")
    dist.barrier()
    return saved, problems


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: config.json marks the folder as this run's."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def inputs(model: HierarchicalCLIP, batches: TrainingBatches) -> dict[str, Any]:
    """What a configuration only points at: the model's shape, the shards and the taxa."""
    return {
        "architecture": model.model_cfg,
        "shards": batches.shards.fingerprints(),
        "taxonomy": batches.taxonomy.sha256,
    }


def same_inputs(path: Path, found: dict[str, Any]) -> None:
    """Hold the inputs against those that the run began with, if it has begun.

    Raises:
        ValueError: naming what has changed since.
    """
    found = json.loads(json.dumps(found))
    if path.is_file():
        began = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in found if found[name] != began.get(name)]
        if changed:
            raise ValueError(
                f"{' and '.join(changed)} changed since the run in {path.parent} began; restore what it had, "
                "or give run.output another folder"
            )


def record_unusable(path: Path, bad: list[BadSample]) -> None:
    """What the shards hold that training will never meet, a JSON object a line; no file if there is nothing."""
    path.unlink(missing_ok=True)
    if bad:
        path.write_text("".join(json.dumps(sample._asdict()) + "\n" for sample in bad), encoding="utf-8")


def keep_lines(path: Path, count: int) -> None:
    """Cut a file to its first lines."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")
