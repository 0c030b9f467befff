"""What a run says while it runs: log.jsonl always, a progress line, and trackers on request."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Journal:
    """Log of one run; only the first process should own one.

    Args:
        folder: where log.jsonl is appended to.
        config: written to the trackers.
        trackers: any of "tensorboard", "wandb", "trackio".
        total_steps: for the progress line.
    """

    def __init__(self, folder: Path, config: dict[str, Any], trackers: Sequence[str], total_steps: int) -> None:
        path = folder / "log.jsonl"
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        self._file = path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")  # a killed run may have left half a line; what follows must not join it
        self._trackers = [_TRACKERS[name](folder, config) for name in trackers]
        self._total = total_steps
        self._warned: set[str] = set()

    def step(self, record: dict[str, Any]) -> None:
        """Log one record; `progress_line` names the keys it needs."""
        self._write(record)
        for tracker in self._trackers:
            tracker.write(record["step"], _numbers(record))
        line = progress_line(record, self._total)
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Log something that is not a step: start, resume, checkpoint, end."""
        self._write({"event": kind, "time": round(time.time(), 3), **facts})

    def warn_once(self, key: str, message: str) -> None:
        """Say a thing the first time it happens."""
        if key not in self._warned:
            self._warned.add(key)
            self.say(f"warning: {message}")
            self.event("warning", message=message)

    def say(self, message: str) -> None:
        """A line for people, below the progress line."""
        print(f"{_newline()}{message}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the progress line, flush the trackers and close the file."""
        print(_newline(), end="", file=sys.stderr, flush=True)
        for tracker in self._trackers:
            tracker.close()
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def progress_line(record: dict[str, Any], total: int) -> str:
    """One line for people: where the run is, the loss per rank, the speed, and what is on a bound."""
    ranks = " ".join(f"{name[:1]} {value:.2f}" for name, value in record["per_rank"].items() if value is not None)
    shown = (name for name in ("curvature", "logit_scale") if name in record["scalars"])
    scalars = " ".join(f"{name} {record['scalars'][name]:.3g}" for name in shown)
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
    left = f"  eta {_duration(record['eta'])}" if record.get("eta") is not None else ""
    return (
        f"step {record['step']}/{total}  loss {loss} [{ranks}]  lr {record['lr']:.2e}  "
        f"{record['samples_per_second']:.0f} img/s  wait {record['waiting']:.0%}  {scalars}{left}"
    )


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a rank absent from the batch is null."""
    return round(value, 6) if math.isfinite(value) else None


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Step records of a log, each step once (a resumed run repeats those after its checkpoint; the last counts)."""
    steps: dict[int, dict[str, Any]] = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line at which a killed run was writing
            continue
        if "step" in record and "event" not in record:
            steps[record["step"]] = record
    return [steps[step] for step in sorted(steps)]


def _newline() -> str:
    return "\n" if sys.stderr.isatty() else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record under flat names such as per_rank/genus."""
    flat = {}
    for key, value in record.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        for name, number in items:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                flat[f"{key}/{name}" if name else key] = float(number)
    return flat


class _Tracker(NamedTuple):
    write: Callable[[int, dict[str, float]], object]
    close: Callable[[], object]


def _tensorboard(folder: Path, config: dict[str, Any]) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return _Tracker(write, writer.close)  # what is not closed loses its last two minutes


def _wandb(folder: Path, config: dict[str, Any]) -> _Tracker:
    return _hosted("wandb", folder, config)


def _trackio(folder: Path, config: dict[str, Any]) -> _Tracker:
    return _hosted("trackio", folder, config)


def _hosted(name: str, folder: Path, config: dict[str, Any]) -> _Tracker:
    """wandb, or trackio, which copies its interface."""
    import importlib

    module = importlib.import_module(name)
    options = {"dir": str(folder)} if name == "wandb" else {}
    module.init(project="bioclip_hc", name=folder.name, config=config, **options)

    def write(step: int, numbers: dict[str, float]) -> None:
        module.log(numbers, step=step)

    return _Tracker(write, module.finish)


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
