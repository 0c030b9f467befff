"""The order of samples does not depend on how many processes and workers read them, nor on a resume in between.

# W readers: processes times workers, or the processes alone where they have none
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_run import LINEAGES, picture

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.preprocess import build_transform
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.samplers import EMPTY, BatchPlan, Remainder
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.data.writer import write_shards
from faults.lab import STEPS, Case, Lane, Missed, Outcome, Skip, World, need

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


def _batches(
    shards: ShardSet, batch: int, rank: int, world: int, seed: int = 0, remainder: Remainder = "drop"
) -> TrainingBatches:
    """Batches of a run, their texts left out."""
    tree = shards.taxonomy()
    return TrainingBatches(
        shards,
        tree,
        TaxonTokens(tree, TextForm("{}"), _letters),
        build_transform({"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        BatchPlan(len(shards), batch, seed, remainder),
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

SAMPLES = 101  # a prime: no number of shards holds them evenly, and no batch divides them
EPOCHS, EPOCH_BATCH = 3, 8
READERS = tuple(itertools.product((1, 2, 4), (0, 1, 3)))
REMAINDERS: tuple[Remainder, ...] = ("drop", "pad")


def evenly(shards: int) -> list[int]:
    """How many samples each shard holds."""
    return [len(part) for part in np.array_split(np.arange(SAMPLES), max(1, shards))]


LAYOUTS = {
    "one shard": lambda W: evenly(1),
    "W - 1 shards": lambda W: evenly(W - 1),
    "W shards": lambda W: evenly(W),
    "W + 1 shards": lambda W: evenly(W + 1),
    "prime numbers": lambda W: [17, 2, 17, 3, 29, 2, 31],
    "very uneven": lambda W: [1, 77, 1, 20, 2],
}


class Epochs:
    """The row of whole epochs."""

    NAME = "epochs"
    FAULT = (
        "shards {1, W - 1, W, W + 1, prime numbers, very uneven} for W readers: processes {1, 2, 4} x "
        "workers {0, 1, 3}; the remainder of an epoch {drop, pad}"
    )
    PROMISE = (
        "every sample once an epoch (drop: but for the last n mod batch of its order), in one order, "
        "a new one each epoch; no hang"
    )

    @staticmethod
    def cases(count: int = 108) -> list[Case]:
        """Layouts by combinations by remainders; at most `count`."""
        made = []
        for layout, (world, workers), remainder in itertools.product(LAYOUTS, READERS, REMAINDERS):
            facts = {"layout": layout, "world": world, "workers": workers, "remainder": remainder}
            name = f"epochs, {layout}, {world} x {workers}, {remainder}"
            made.append(Case(name, f"{layout}, {remainder}", facts))
        count = min(count, len(made))
        return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]

    @staticmethod
    def run(case: Case, lane: Lane) -> Outcome:
        """Count every sample of all processes; the order is to be that of one process that reads one shard."""

        def alone(folder: Path) -> None:
            plain = {"layout": "one shard", "world": 1, "workers": 0}
            lane.call("faults.order:census", case.facts | plain | {"folder": str(folder)}, folder)

        reference = lane.laboratory.once(f"epochs-{case.facts['remainder']}", alone)
        folder = lane.folder(case.name)
        found = lane.call("faults.order:census", case.facts | {"folder": str(folder)}, folder)
        expected = json.loads((reference / "answer.json").read_text())["hash"]
        wrong = [f"{found[what]} {what}" for what in ("missed", "repeated") if found[what]]
        if found["hash"] != expected:
            wrong.append(f"the order {found['hash']} is not {expected}")
        if found["stayed"] > 0.05:
            wrong.append(f"{found['stayed']:.0%} of neighbours stay neighbours, by chance {2 / SAMPLES:.0%}")
        if abs(found["same_shard"] - found["same_shard_by_chance"]) > 0.15:
            wrong.append(f"shards do not mix: {found['same_shard']:.0%} of neighbours are of one, by chance "
                         f"{found['same_shard_by_chance']:.0%}")  # fmt: skip
        if wrong:
            raise Missed("; ".join(wrong), **found)
        return Outcome(figures=found)

    @staticmethod
    def summary(outcomes: list[Outcome]) -> str:
        """A line of figures."""
        every = [outcome.figures for outcome in outcomes if outcome.figures]
        missed, repeated, seen = (sum(figures[key] for figures in every) for key in ("missed", "repeated", "seen"))
        hung = sum(outcome.note.startswith("hung") for outcome in outcomes)
        told = [f"missed {missed}, repeated {repeated} of {seen:,} samples; hung {hung}"]
        for remainder in REMAINDERS:
            hashes = {figures["hash"] for figures in every if figures["remainder"] == remainder}
            one = "one hash of all: " + min(hashes)[:12] if len(hashes) == 1 else f"{len(hashes)} different hashes"
            told.append(f"{remainder}: {one}")
        if every:
            stayed, same, chance = (
                np.mean([figures[key] for figures in every])
                for key in ("stayed", "same_shard", "same_shard_by_chance")
            )
            told.append(
                f"neighbours that were neighbours before {stayed:.1%} (by chance {2 / SAMPLES:.1%}), of one shard "
                f"{same:.1%} (by chance {chance:.1%})"
            )
        return "; ".join(told)


def census(facts: str, answer: str) -> int:
    """In a fork: write the shards, read epochs on all processes, count."""
    told = json.loads(facts)
    sizes = LAYOUTS[told["layout"]](told["world"] * max(1, told["workers"]))
    shards, written = [], 0
    for number, size in enumerate(sizes):
        part = (Sample(f"{i:05d}", picture(i % 7), LINEAGES[i % 6]) for i in range(written, written + size))
        shards += write_shards(part, Path(told["folder"]) / f"part-{number:03d}")
        written += size
    ranks = [
        _batches(ShardSet(shards), EPOCH_BATCH, rank, told["world"], seed=5, remainder=told["remainder"])
        for rank in range(told["world"])
    ]
    plan = ranks[0].plan
    steps = EPOCHS * plan.steps_per_epoch
    loaded = [rank.load(0, steps, told["workers"]) for rank in ranks]
    orders: list[list[int]] = [[] for _ in range(EPOCHS)]
    digests = [hashlib.sha256(), hashlib.sha256()]
    for step in range(steps):
        for batch in [next(one) for one in loaded]:
            orders[plan.epoch(step)] += batch.indices.tolist()
            for digest, part in zip(digests, (batch.indices, batch.images), strict=True):
                digest.update(part.numpy().tobytes())
    orders = [[i for i in order if i != EMPTY] for order in orders]
    wanted = SAMPLES - (SAMPLES % EPOCH_BATCH if told["remainder"] == "drop" else 0)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    share = np.array(sizes) / SAMPLES
    found = {
        "remainder": told["remainder"],
        "missed": sum(wanted - len(set(order)) for order in orders),
        "repeated": sum(len(order) - len(set(order)) for order in orders),
        "seen": sum(map(len, orders)),
        "hash": hashlib.sha256("".join(digest.hexdigest() for digest in digests).encode()).hexdigest(),
        "stayed": stayed([list(range(SAMPLES)), *orders]),
        "same_shard": float(np.mean([shard_of[a] == shard_of[b] for a, b in successive(orders)])),
        "same_shard_by_chance": float((share * (np.array(sizes) - 1) / (SAMPLES - 1)).sum()),
    }
    Path(answer).write_text(json.dumps(found))
    return 0


def successive(orders: list[list[int]]) -> list[tuple[int, int]]:
    """Successive samples of all epochs."""
    return [pair for order in orders for pair in itertools.pairwise(order)]


def stayed(orders: list[list[int]]) -> float:
    """Of the neighbours in one order the share that are neighbours in another, the mean over pairs of orders."""
    neighbours = [{frozenset(pair) for pair in itertools.pairwise(order)} for order in orders]
    return float(np.mean([len(a & b) / len(b) for a, b in itertools.combinations(neighbours, 2)]))
