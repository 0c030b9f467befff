"""The whole way on a synthetic tree of life: shards, training, a resume, the CLIP baseline, evaluation, a report.

    python train/demo.py [--output runs/demo] [--seeds 1] [--epochs E]

Two models see the same images: one learns level by level in hyperbolic space from all ranks of every image, the
other is CLIP with one caption per image, its rank drawn at random (BioCLIP's way). Both are then asked to name
held-out individuals of known species, and species that no photograph has shown them, among all taxa: each rank for
itself, down the tree, and as a whole path. Then their image embeddings are asked alone, from a few examples.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from bioclip_hc.data.decode import decode_image
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.synthetic import TreeFiles, contact_sheet, evolve, write_tree_of_life
from bioclip_hc.evaluation import Embedding, Report, Row, Score, chance, few_shot, pixel_probe, score
from bioclip_hc.evaluation.benchmark import truth_of
from bioclip_hc.evaluation.images import contents_of, embed_photographs
from bioclip_hc.evaluation.outcome import outcome
from bioclip_hc.evaluation.strata import training_counts
from bioclip_hc.evaluation.study import Run, report_of
from bioclip_hc.evaluation.systems import System
from bioclip_hc.evaluation.tables import NAME_WIDTH
from bioclip_hc.taxonomy import RANKS, Taxonomy

from journal import read_log

HERE = Path(__file__).resolve().parent
SYSTEMS = {"hyperbolic, level by level": "smoke.toml", "CLIP, mixed ranks": "smoke_clip.toml"}
PROBE_SIDE = 32  # the probe sees images as 32 x 32 x 3 numbers
SHOTS, DRAWS = (1, 5), 10  # few-shot: examples of each species, and how often they are drawn


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    name: str
    folder: Path
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo for each seed; prints one table and the path of the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/demo", help="emptied first if an earlier demo made it")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0 .. SEEDS - 1")
    parser.add_argument("--epochs", type=float, help="override the configurations' number of epochs")
    options = parser.parse_args(arguments)
    output = Path(options.output)
    claim(output)
    start = time.perf_counter()
    reports = [one_seed(output / f"seed-{seed}", seed, options.epochs) for seed in range(options.seeds)]
    if len(reports) == 1:
        print(f"\n{reports[0].table()}\n\n{table_of_examples(reports[0])}\n")
    else:
        print(table_of_seeds(reports))
    print(f"{time.perf_counter() - start:.0f} s in all; open {output / 'seed-0' / 'report.html'} in a browser")
    return 0


def claim(output: Path) -> None:
    """Make an empty output folder; only a folder that an earlier demo marked is emptied.

    Raises:
        SystemExit: the folder holds something else.
    """
    mark = output / ".demo"
    if output.exists() and any(output.iterdir()) and not mark.is_file():
        sys.exit(f"demo.py: {output} holds other files; name another folder with --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    mark.touch()


def one_seed(folder: Path, seed: int, epochs: float | None) -> Report:
    """Data, both trainings, and the report of one seed."""
    say(f"growing a tree of life (seed {seed}) and photographing it")
    files = write_tree_of_life(folder / "tree", seed=seed)
    contact_sheet(evolve(seed), folder / "field-guide.png")
    runs = [train(name, folder, files, seed, epochs) for name in SYSTEMS]
    say("evaluating on held-out individuals and held-out species")
    report = evaluate_all(runs, files, seed)
    report.to_json(folder / "report.json")
    report.to_html(folder / "report.html")
    return report


def train(name: str, folder: Path, files: TreeFiles, seed: int, epochs: float | None) -> Trained:
    """Train one system through the command line, as a user would; the first is interrupted and resumed once."""
    config = SYSTEMS[name]
    output = folder / Path(config).stem
    command = [
        sys.executable, str(HERE / "train.py"), str(HERE / "configs" / config),
        "--data.train", str(files.train[0].parent), "--data.taxonomy", str(files.taxonomy),
        "--run.output", str(output), "--run.seed", str(seed),
    ]  # fmt: skip
    if epochs is not None:
        command += ["--optim.epochs", str(epochs)]
    say(f"training: {name}")
    start = time.perf_counter()
    if config == "smoke.toml":
        call([*command, "--run.stop-after", "100"])
        say("stopped on purpose at its checkpoint; resuming")
        command.append("--resume")
    call(command)
    return Trained(name, output, time.perf_counter() - start)


def call(command: list[str]) -> None:
    """Run a command; its failure ends the demo, for it has said why."""
    code = subprocess.call(command, env={**os.environ, "WORLD_SIZE": "1"})  # one process, in a Slurm job too
    if code:
        sys.exit(f"demo.py: {' '.join(command)} ended with code {code}")


def evaluate_all(runs: Sequence[Trained], files: TreeFiles, seed: int) -> Report:
    """Every protocol of both systems, beside chance and a linear probe on pixels."""
    taxonomy = Taxonomy.from_csv(files.taxonomy)
    splits = {
        "held-out individuals": ShardSet(files.heldout_individuals),
        "held-out species": ShardSet(files.heldout_species),
    }
    train_shards = ShardSet(files.train)
    train_taxa = truth_of(train_shards, taxonomy)
    counts = training_counts(train_taxa, taxonomy)
    heldout = np.concatenate([pixels(shards) for shards in splits.values()])
    probe = pixel_probe(pixels(train_shards), train_taxa, heldout, taxonomy)
    baselines, measured, embeddings = [], [], []
    for split, shards in splits.items():
        truth, found, probe = truth_of(shards, taxonomy), probe[: len(shards)], probe[len(shards) :]
        baselines.append(Row("linear probe on pixels", "", split, score(found, truth, taxonomy)))
        baselines.append(Row("chance", "", split, chance(truth, taxonomy)))
    contents = {split: contents_of(shards) for split, shards in splits.items()}
    for run in runs:
        system = System.load(run.folder / "model")
        text = system.embed_taxa(taxonomy)
        seen = read_log(run.folder / "log.jsonl")[-1]["used"]
        for split, shards in splits.items():
            embedded = embed_photographs(system, shards, contents[split])
            assert embedded is not None  # this process is the only one
            indices, image = embedded.indices, embedded.vectors
            truth = truth_of(shards, taxonomy)[indices]
            answers = outcome(indices, image, truth, text, taxonomy, **system.space)
            facts = {"images seen": f"{seen:,}", "training time": f"{run.seconds:.0f} s"}
            facts |= by_examples(image, truth, taxonomy, system)
            measured.append(Run(run.name, split, answers, shards, counts, extra=facts))
        if system.model.geometry == "lorentz":
            embeddings.append(Embedding(run.name, text.numpy(), system.space["curv"], taxonomy))
    curves = {run.name: read_log(run.folder / "log.jsonl") for run in runs}
    title = f"A synthetic tree of life, seed {seed}"
    return report_of(title, measured, baselines=baselines, curves=curves, embeddings=embeddings)


def by_examples(image: Tensor, truth: np.ndarray, taxonomy: Taxonomy, system: System) -> dict[str, str]:
    """Accuracy in % of naming the species by the nearest centroid of a few examples each, no text asked."""
    space = {"geometry": system.space["geometry"], "curv": system.space["curv"]}
    found = {n: few_shot(image, truth, taxonomy, shots=n, seeds=DRAWS, rank="species", **space) for n in SHOTS}
    return {
        f"species from {n} each": f"{100 * f.mean[-1]:.1f} ±{100 * f.std[-1]:.1f} (of {f.classes[-1]})"
        for n, f in found.items()
    }


def table_of_examples(report: Report) -> str:
    """`by_examples` of each system, one split after the other."""
    rows = {(row.split, row.name): row for row in report.rows if row.protocol}
    splits = list(dict.fromkeys(split for split, _ in rows))
    columns = [f"species from {n} each" for n in SHOTS]
    head = f"Nearest centroid of a few examples of each species, {DRAWS} draws (accuracy in %, of how many species)"
    lines = [head, f"{'':52}" + "".join(name.rjust(24) for name in columns)]
    for (split, name), row in sorted(rows.items(), key=lambda item: splits.index(item[0][0])):
        cells = "".join(row.extra[column].rjust(24) for column in columns)
        lines.append(f"{split}, {name[:NAME_WIDTH]}".ljust(52) + cells)
    return "\n".join(lines)


def pixels(shards: ShardSet) -> np.ndarray:
    """(N, P) float32 small images as rows."""
    side = (PROBE_SIDE, PROBE_SIDE)
    rows = [np.asarray(decode_image(shards.read(i).image).resize(side)).reshape(-1) for i in range(len(shards))]
    return np.stack(rows).astype(np.float32)


def table_of_seeds(reports: Sequence[Report]) -> str:
    """Mean over seeds and, below it, the standard deviation; one table per split and protocol."""
    lines = []
    first = reports[0].rows
    for split, protocol in dict.fromkeys((row.split, row.protocol) for row in first if row.protocol):
        lines += ["", f"{split}, {protocol}, {len(reports)} seeds (top-1 accuracy in %)"]
        lines.append(" " * NAME_WIDTH + "".join(f"{name:>9}" for name in (*RANKS, "average", "nLCA")))
        for i, row in enumerate(first):
            if row.split == split and row.protocol in (protocol, ""):
                values = np.array([_numbers(report.rows[i].score) for report in reports])
                means = "".join(f"{m:9.1f}" for m in values.mean(0))
                spread = "".join(f"±{s:.1f}".rjust(9) for s in values.std(0, ddof=1))
                lines += [row.name[:NAME_WIDTH].ljust(NAME_WIDTH) + means, " " * NAME_WIDTH + spread]
    return "\n".join(lines)


def _numbers(s: Score) -> list[float]:
    """Accuracies per rank, their average and nLCA, in percent; the synthetic splits know every rank."""
    return [100 * (value or 0.0) for value in (*s.accuracy, s.average, s.nlca)]


def say(message: str) -> None:
    """A line that stands out of the training log."""
    print(f"\n== {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
