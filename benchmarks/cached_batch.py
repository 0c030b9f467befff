"""How much memory a training step takes when its batch is encoded in micro-batches: writes docs/cached_batch.md.

    python benchmarks/cached_batch.py [--batches 1024 2048 32768] [--micro-batch 256] [--write]

Every row is `train/train.py` with the model of `make demo` on synthetic shards, two steps of one process: the peak
of all its memory (its loader's too; shared pages counted once) and the losses. The whole batch at once is tried at
the smaller sizes only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "train")]

from documents import table, update  # noqa: E402
from memory import proportional_kib  # noqa: E402

from bioclip_hc.data.synthetic import write_tree_of_life  # noqa: E402

from journal import read_log  # noqa: E402

DOCUMENT = ROOT / "docs" / "cached_batch.md"
SPECIES = 88  # of the default tree, its held-out species left aside
STEPS = 2
WHOLE_UP_TO = 4096  # larger batches are not tried at once: they are what micro-batches are for


class Measured(NamedTuple):
    """One run."""

    peak_gib: float
    losses: list[float]


def measure(shards: Path, output: Path, batch: int, micro_batch: int) -> Measured:
    """Train two steps in a process of its own.

    Raises:
        CalledProcessError: training failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(ROOT / "train" / "train.py"), str(ROOT / "train" / "configs" / "smoke.toml")]
    options = {
        "data.train": shards, "data.workers": 1, "run.output": output, "run.micro-batch": micro_batch,
        "run.log-every": 1, "run.save-every": 0, "run.stop-after": STEPS,
        "optim.global-batch": batch, "optim.epochs": STEPS,
    }  # fmt: skip
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_tree(process.pid))
        time.sleep(0.3)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=process.stderr.read())
    return Measured(peak / 2**30, [record["loss"] for record in read_log(output / "log.jsonl")])


def memory_of_tree(pid: int) -> int:
    """Bytes resident of a process and all below it, pages that n share counted 1/n each."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:  # it has ended
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    total, todo = 0, [pid]
    while todo:
        own = todo.pop()
        todo += children.get(own, [])
        total += 1024 * proportional_kib(own)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 32768])
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "cached-batch")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{DOCUMENT.name}")
    options = parser.parse_args()
    individuals = -(-max(options.batches) // SPECIES)
    print(f"photographing {individuals * SPECIES} creatures", flush=True)
    write_tree_of_life(options.folder / f"tree-{individuals}", train=individuals, heldout=1)
    shards = options.folder / f"tree-{individuals}" / "train"
    lines = []
    for batch in sorted(options.batches):
        for micro_batch in [0, options.micro_batch] if batch <= WHOLE_UP_TO else [options.micro_batch]:
            found = measure(shards, options.folder / "run", batch, micro_batch)
            losses = ", ".join(f"{loss:.4f}" for loss in found.losses)
            how = str(micro_batch) if micro_batch else "at once"
            lines.append([str(batch), how, f"{found.peak_gib:.2f}", losses])
            print("  ".join(lines[-1]), flush=True)
    body = table(["global batch", "micro-batch", "peak GiB", "losses of two steps"], lines)
    print(body)
    if options.write:
        update(DOCUMENT, "<!-- measured -->", "<!-- end of measured -->", body)


if __name__ == "__main__":
    main()
