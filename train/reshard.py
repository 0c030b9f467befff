"""A checkpoint of one number of processes, loaded by another: DeepSpeed's universal checkpoints, made exact.

DeepSpeed's loader (0.19.8) restores masters and moments, but nothing that the optimizer does not own: frozen
parameters, running statistics of BatchNorm. And at stage 3 it gives all parameter groups the options of the first,
weight decay among them, and one step counter in common, which each group then advances. What it leaves undone is
done here.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from agreement import on_all, on_first
from durable import make_folder, need_free, plain_name


def load_resharded(engine: Any, path: Path) -> None:
    """Restore an engine that was started to load universal checkpoints from the checkpoint at `path`; a collective.

    Raises:
        FailedTogether: on all processes, if it cannot be converted (no space, a read error).
        ValueError: not a checkpoint of this architecture.
    """
    with _converted(path) as folder:
        _same_shapes(engine, folder / "zero", path)
        with plain_name(folder.parent) as parent:
            engine.load_checkpoint(str(parent), tag=folder.name)
        _restore_options(engine, folder / "zero" / "optimizer_state.pt")
    _restore_the_rest(engine, path)


@contextmanager
def _converted(path: Path) -> Iterator[Path]:
    """The checkpoint as one file for each parameter and state, for as long as the context lasts."""
    place = path.parent / f".{path.name}.universal"
    failed = f"{path} cannot be rearranged for {dist.get_world_size()} processes"
    try:
        on_first(failed, lambda: _convert(path, place))
        yield place / path.name
        on_all(failed, lambda: None)  # all have read it
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(place, ignore_errors=True)


def _convert(path: Path, place: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(place, ignore_errors=True)
    size = sum(file.stat().st_size for file in path.iterdir())
    need_free(path.parent, 2 * size, "a temporary copy of it")  # fragments of every process, and what they make up
    make_folder(place / path.name)
    with plain_name(path) as source, plain_name(place) as target:
        options = SimpleNamespace(
            input_folder=str(source),
            output_folder=str(target / path.name),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # stages 1 and 2 do not write the marker that it asks for
        )
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ds_to_universal.main(options)


def _same_shapes(engine: Any, zero: Path, path: Path) -> None:
    """Raises ValueError unless every trainable parameter has a master and moments of its size."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        size = getattr(parameter, "ds_numel", parameter.numel())
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            file = zero / name / f"{key}.pt"
            found = _tensor(file).numel() if file.is_file() else 0
            if found != size:
                raise ValueError(
                    f"{path} is a checkpoint of another architecture: {key} of {name} has size {found}, not {size}"
                )


def _tensor(file: Path) -> torch.Tensor:
    content = torch.load(file, mmap=True, weights_only=False)
    return content["param"] if isinstance(content, dict) else content


def _restore_options(engine: Any, file: Path) -> None:
    """Each parameter group its own options, and each state a step counter of its own."""
    optimizer = engine.optimizer.optimizer
    saved = torch.load(file, weights_only=False)["param_groups"]
    for group, options in zip(optimizer.param_groups, saved, strict=True):
        group.update({key: value for key, value in options.items() if key != "params"})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _restore_the_rest(engine: Any, path: Path) -> None:
    """What the optimizer does not own: buffers and frozen parameters."""
    import deepspeed

    written = [torch.load(file, weights_only=False) for file in _model_files(path)]
    module = written[0]["module"]
    for name, buffer in engine.module.named_buffers():
        if name in module:
            buffer.data.copy_(module[name])
    frozen = {name: p for name, p in engine.module.named_parameters() if not p.requires_grad}
    for name, parameter in frozen.items():
        if hasattr(parameter, "ds_id"):
            pieces = [states["frozen_param_fragments"][name].flatten() for states in written]
            value = torch.cat(pieces)[: parameter.ds_numel].view(parameter.ds_shape)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if dist.get_rank() == 0:
                    parameter.data.copy_(value)
        else:
            parameter.data.copy_(module[name])


def _model_files(path: Path) -> list[Path]:
    """Files of parameters and buffers, by the process that wrote them: one file, or at stage 3 one of each."""
    files = list(path.glob("*model_states.pt"))
    return sorted(files, key=lambda file: [int(word) for word in file.name.split("_") if word.isdigit()])
