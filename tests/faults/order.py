"""The order of samples does not depend on how many processes and workers read them, nor on a resume in between."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from small_run import LINEAGES, picture

from bioclip_hc.data.decode import build_transform
from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.samplers import BatchPlan
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.data.writer import write_shards
from faults.lab import STEPS, Case, Lane, Outcome, Skip, World, need

from journal import read_log

NAME = "order"
FAULT = "processes {1, 2, 4} x workers {0, 1, 4}, from the start and resumed from one combination to another"
PROMISE = "the same samples, with the same crops, in the same order"

COMBINATIONS = tuple(itertools.product((1, 2, 4), (0, 1, 4)))
BATCH = 12


def cases(count: int = 36) -> list[Case]:
    """Loaders of all combinations; real runs of them; changes of combination in mid-epoch; at most `count`."""
    made = []
    for world, workers in COMBINATIONS:
        made.append(_case("loaders", [(world, workers, STEPS)]))
    for a, b in zip(COMBINATIONS, COMBINATIONS[4:] + COMBINATIONS[:4], strict=True):
        made.append(_case("loaders, changed in mid-epoch", [(*a, 5), (*b, STEPS)]))
    for world, workers in COMBINATIONS:
        made.append(_case("training", [(world, workers, STEPS)]))
    for a, b in zip(COMBINATIONS, COMBINATIONS[4:] + COMBINATIONS[:4], strict=True):
        made.append(_case("training, resumed in mid-epoch", [(*a, 5), (*b, STEPS)]))
    count = min(count, len(made))
    return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]


def _case(kind: str, parts: list[tuple[int, int, int]]) -> Case:
    name = " then ".join(f"{world} x {workers} to step {stop}" for world, workers, stop in parts)
    return Case(f"order, {kind}, {name}", kind, {"parts": parts})


def run(case: Case, lane: Lane) -> Outcome:
    """Hash the order, or take it from the logs, and hold it against one process without workers."""
    if case.kind.startswith("training"):
        return _trained(case, lane)
    folder = lane.folder(case.name)
    shards = str(lane.laboratory.setup / "shards")
    whole = lane.call("faults.order:digest", {"shards": shards, "parts": [(1, 0, STEPS)]}, folder)
    found = lane.call("faults.order:digest", {"shards": shards, "parts": case.facts["parts"]}, folder)
    need(found == whole, f"{found} is not {whole}")
    return Outcome(figures={"hash": found["order"]})


def digest(facts: str, answer: str) -> int:
    """In a fork: a hash of the samples and crops that parts of a run read."""
    told = json.loads(facts)
    order, pixels = hashlib.sha256(), hashlib.sha256()
    start = 0
    for world, workers, stop in told["parts"]:
        ranks = [_batches(ShardSet(told["shards"]), BATCH, rank, world).load(start, stop, workers)
                 for rank in range(world)]  # fmt: skip
        for step in range(start, stop):
            parts = [next(rank) for rank in ranks]
            indices = torch.cat([part.indices for part in parts])
            order.update(f"{step}: {indices.tolist()}\n".encode())
            pixels.update(torch.cat([part.images for part in parts]).numpy().tobytes())
        start = stop
    Path(answer).write_text(json.dumps({"order": order.hexdigest(), "pixels": pixels.hexdigest()}))
    return 0


def _batches(shards: ShardSet, batch: int, rank: int, world: int, seed: int = 0) -> TrainingBatches:
    """Batches of a run, their texts left out."""
    tree = shards.taxonomy()
    return TrainingBatches(
        shards,
        tree,
        TaxonTokens(tree, TextForm("{}"), _letters),
        build_transform({"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}, train=True),
        BatchPlan(len(shards), batch, seed),
        world_rank=rank,
        world_size=world,
    )


def _letters(texts: list[str]) -> torch.Tensor:
    """A tokenizer."""
    return torch.tensor([[ord(c) % 128 for c in text[:60].ljust(60, "\0")] for text in texts])


def _trained(case: Case, lane: Lane) -> Outcome:
    """Real runs, whose log has a digest of the samples of each step."""
    reference = _orders(lane.laboratory.reference(lane))
    output = lane.folder(case.name) / "run"
    for i, (world, workers, stop) in enumerate(case.facts["parts"]):
        more = ("--data.workers", str(workers), "--run.stop-after", str(stop), *(("--resume",) if i else ()))
        run = World(lane, output, *more, processes=world)
        codes = run.wait()
        need(codes == [0] * world, f"{world} x {workers} ended with {codes}: {run.printed[-800:]}")
    found = _orders(output)
    need(found == reference, f"{found} is not {reference}")
    return Outcome(figures={"hash": str(found[-1])})


def _orders(output: Path) -> list[Any]:
    log = read_log(output / "log.jsonl")
    if "order" not in log[0]:
        raise Skip("the log has no digest of the order")
    return [record["order"] for record in log]


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    hashes = {outcome.figures["hash"] for outcome in outcomes if len(outcome.figures.get("hash", "")) == 64}
    return "one hash of all: " + hashes.pop()[:12] if len(hashes) == 1 else f"{len(hashes)} different hashes"


# -- epochs -----------------------------------------------------------------------------------------------

LAYOUTS = {
    "one shard": lambda readers: [96],
    "fewer shards than readers": lambda readers: [19] * max(1, readers // 2),
    "as many as readers": lambda readers: [11] * max(1, readers),
    "more than readers": lambda readers: [7] * (readers + 3),
    "prime numbers": lambda readers: [13, 2, 17, 3, 29, 5, 11],
    "uneven": lambda readers: [1, 60, 1, 23, 2],
}


class Epochs:
    """The row of whole epochs."""

    NAME = "epochs"
    FAULT = "shards fewer than processes x workers, as many, more; prime numbers of them and of samples; uneven"
    PROMISE = "every sample once an epoch (but for the last n mod batch of its order), no hang"

    @staticmethod
    def cases(count: int = 54) -> list[Case]:
        """Layouts by combinations; at most `count`."""
        made = [
            Case(f"epochs, {name}, {world} x {workers}", name, {"layout": name, "world": world, "workers": workers})
            for name in LAYOUTS
            for world, workers in COMBINATIONS
        ]
        count = min(count, len(made))
        return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]

    @staticmethod
    def run(case: Case, lane: Lane) -> Outcome:
        """Two epochs and a bit over all processes; count every sample."""
        sizes = LAYOUTS[case.facts["layout"]](case.facts["world"] * max(1, case.facts["workers"]))
        folder = lane.folder(case.name)
        found = lane.call("faults.order:census", {**case.facts, "sizes": sizes, "folder": str(folder)}, folder)
        need(found["missed"] == 0, f"{found['missed']} missed")
        need(found["duplicated"] == 0, f"{found['duplicated']} seen twice")
        return Outcome(figures=found)

    @staticmethod
    def summary(outcomes: list[Outcome]) -> str:
        """A line of figures."""
        total = {key: sum(o.figures.get(key, 0) for o in outcomes) for key in ("missed", "duplicated", "seen")}
        return f"missed {total['missed']}, duplicated {total['duplicated']} of {total['seen']:,} samples; hung 0"


def census(facts: str, answer: str) -> int:
    """In a fork: write the shards, read two epochs, count."""
    told = json.loads(facts)
    shards, samples = [], 0
    for number, size in enumerate(told["sizes"]):
        part = (Sample(f"{samples + i:05d}", picture((samples + i) % 7), LINEAGES[i % 6]) for i in range(size))
        shards += write_shards(part, Path(told["folder"]) / f"part-{number}")
        samples += size
    batch = 4 if samples < 32 else 8
    plan = BatchPlan(samples, batch, seed=5)
    epochs = {0: [], 1: []}
    ranks = [
        _batches(ShardSet(shards), batch, rank, told["world"], seed=5).load(
            0, 2 * plan.steps_per_epoch, told["workers"]
        )
        for rank in range(told["world"])
    ]
    for step in range(2 * plan.steps_per_epoch):
        epochs[plan.epoch(step)] += [i for rank in ranks for i in next(rank).indices.tolist()]
    rule = samples - samples % batch
    found = {
        "missed": sum(max(0, rule - len(set(seen))) for seen in epochs.values()),
        "duplicated": sum(len(seen) - len(set(seen)) for seen in epochs.values()),
        "seen": sum(map(len, epochs.values())),
    }
    Path(answer).write_text(json.dumps(found))
    return 0
