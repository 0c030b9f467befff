"""Samples from the wild: what can be used is used, the rest is told once, and nothing is lost in between."""

from __future__ import annotations

import collections
import json
import re
from pathlib import Path

import numpy as np
import torch

from bioclip_hc.data.captions import parse_taxon_tag
from bioclip_hc.data.index import build_index
from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.preprocess import build_transform
from bioclip_hc.data.quarantine import Quarantine
from bioclip_hc.data.samplers import BatchPlan
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.taxonomy import Taxonomy
from faults.lab import Case, Lane, Outcome, World, need
from faults.specimens import END, JPEG, PNG, TAG, Specimen, all_of_them, member, sample

from journal import read_log

NAME = "samples"
FAULT = (
    f"odd samples of {len(all_of_them())} kinds among good ones, a tar cut at 120 points; in loaders, in training"
)
PROMISE = (
    "seen = used + quarantined, exactly; each told once with shard, key and reason; above the limit the run ends"
)

GOOD = 4  # samples before the odd one, and after it
EPOCHS = 2
BATCH = 12  # of small_run's configuration, as its 3 epochs are
CUTS = 12  # of one case
ALIKE = 0.05  # of the range of the pixels: what JPEG makes of blocks


def cases(kinds: int = 1000, cuts: int = 120, runs: int = 32, limits: int = 6) -> list[Case]:
    """Every specimen through loaders; cut points of a tar; training runs on specimens, and beyond the limit."""
    specimens = all_of_them()
    specimens = specimens[:: max(1, len(specimens) // kinds)]
    made = [
        Case(f"samples, {one.name}", f"{one.where}s in a loader", {"specimen": one.name, "workers": i % 3})
        for i, one in enumerate(specimens)
    ]
    made += [
        Case(
            f"samples, cut {i} to {i + CUTS - 1}",
            "cuts of a tar",
            {"first": i, "of": max(cuts, CUTS)},
        )
        for i in range(0, cuts, CUTS)
    ]
    light = [one for one in all_of_them() if not one.heavy]
    made.append(
        Case("samples, training on all", "training", {"specimens": [one.name for one in light], "epochs": 1})
    )
    made.append(
        Case("samples, training on all, 2 x 2", "training",
             {"specimens": [one.name for one in light], "epochs": 1, "processes": 2, "workers": 2})
    )  # fmt: skip
    for one in light[:: max(1, len(light) // runs)]:
        made.append(Case(f"samples, training, {one.name}", "training", {"specimens": [one.name]}))
    return made + LIMITS[:limits]


BEYOND = "samples were quarantined, more than the limit.*zero bytes"
LIMITS = [
    Case("samples, limit, met while training", "limit",
         {"good": 48, "unread": 12, "code": 2, "says": BEYOND}),
    Case("samples, limit, met by two processes", "limit",
         {"good": 48, "unread": 12, "processes": 2, "code": 2,
          "says": BEYOND}),
    Case("samples, limit, nothing can be read", "limit",
         {"good": 0, "unread": 60, "code": 2, "says": r"the last.*zero bytes"}),
    Case("samples, limit, told at the start", "limit",
         {"good": 48, "bad": 12, "code": 2, "says": r"12 of 60 samples .* unusable, more than.*no caption"}),
    Case("samples, limit, not reached", "limit", {"good": 57, "unread": 3, "code": 0, "says": "model: "}),
    Case("samples, limit, not reached by four processes", "limit",
         {"good": 57, "unread": 3, "processes": 4, "code": 0, "says": "model: "}),
]  # fmt: skip


def run(case: Case, lane: Lane) -> Outcome:
    """What the case's kind calls for."""
    return {"cuts of a tar": _cut, "training": _train, "limit": _limit}.get(case.kind, _load)(case, lane)


def _load(case: Case, lane: Lane) -> Outcome:
    folder = lane.folder(case.name)
    return Outcome(figures=lane.call("faults.samples:epochs", {**case.facts, "folder": str(folder)}, folder))


def _named(name: str) -> Specimen:
    return next(one for one in all_of_them() if one.name == name)


def write(folder: Path, one: Specimen, name: str = "odd") -> Path:
    """A shard of good samples with the specimen among them."""
    before, after = (b"".join(sample(f"good{i + part}") for i in range(GOOD)) for part in (0, GOOD))
    path = folder / f"{name}.tar"
    path.write_bytes(one.around(before, one.make(), after + END))
    return path


def expected_used(one: Specimen) -> list[str]:
    """Keys of the shard that must be used."""
    good = {"": 2 * GOOD, "after": GOOD, "all": 0}[one.lost]
    return [f"good{i}" for i in range(good)] + ([] if one.lost == "all" else list(one.used))


def need_records(what: str, expected: list[tuple[str, str, str]], found: list[tuple[str, str, str]]) -> None:
    """Each expected (shard, key, pattern) must have one record, and each record one expectation."""
    left = list(found)
    for shard, key, pattern in expected:
        fits = [r for r in left if r[:2] == (shard, key) and re.search(pattern, r[2])]
        need(fits, f"{what}: no record of {key!r} in {Path(shard).name} with {pattern!r} among {left[:8]}")
        left.remove(fits[0])
    need(not left, f"{what}: unexpected {left[:8]}")


# -- loaders ------------------------------------------------------------------------------------------------


def epochs(facts: str, answer: str) -> int:
    """In a fork: whole epochs over a specimen among good samples."""
    told = json.loads(facts)
    one, folder = _named(told["specimen"]), Path(told["folder"])
    shard = write(folder, one)
    control = folder / "a control.tar"
    control.write_bytes(sample("control", PNG, "png") + END)
    shards = ShardSet([shard, control])
    need_records("at the start", [(str(shard), *record) for record in one.bad], [tuple(r) for r in shards.bad])
    key_of = [shards.key(i) for i in range(len(shards))]
    expected = collections.Counter(["control", *expected_used(one)])
    unread = [(str(shard), *record) for record in one.unread]
    found = expected + collections.Counter(key for _, key, _ in unread)
    need(collections.Counter(key_of) == found, f"indexed {key_of}")
    quarantine = Quarantine(folder / "quarantine.jsonl", limit=1.0)
    loader = _batches(shards)
    for batch in loader.load(0, EPOCHS, told["workers"]):
        need(sorted(batch.indices.tolist()) == list(range(len(shards))), f"not an epoch: {batch.indices.tolist()}")
        need_records("while decoding", unread, [tuple(record) for record in batch.bad])
        keys = [key_of[i] for i in batch.indices.tolist()]
        left_out = {record.key for record in batch.bad}
        used = [key for key in keys if key not in left_out]
        need(collections.Counter(used) == expected, f"used {used}")
        quarantine.use(len(used))
        for record in batch.bad:
            quarantine.record(*record)
        pixels = batch.images.float()
        for row, key in enumerate(keys):
            supervised = bool((batch.image_taxa[row] >= 0).any())
            need(supervised == (key not in left_out), f"{key}: supervised: {supervised}")
            blank = bool((batch.images[row] == loader.transform.blank).all())
            need(key not in left_out or blank, f"{key} cannot be read and has pixels")
        if one.alike:
            like = pixels[keys.index("control")]
            for row in (row for row, key in enumerate(keys) if key in one.used):
                off = float((pixels[row] - like).abs().mean() / (like.max() - like.min()))
                need(off < ALIKE, f"{keys[row]} does not look like the picture, but for {off:.1%} of the range")
    lines = [json.loads(line) for line in quarantine.path.read_text().splitlines()] if one.unread else []
    need(len(lines) == quarantine.quarantined == EPOCHS * len(unread), f"{len(lines)} lines")
    need(quarantine.seen == EPOCHS * len(shards), f"seen {quarantine.seen} of {EPOCHS} x {len(shards)}")
    figures = {"used": quarantine.used, "quarantined": quarantine.quarantined + EPOCHS * len(shards.bad),
               "seen": EPOCHS * (len(shards) + len(shards.bad))}  # fmt: skip
    Path(answer).write_text(json.dumps(figures))
    return 0


def _batches(shards: ShardSet) -> TrainingBatches:
    """A step an epoch; whole pictures, where they are square; the taxonomy of the good samples."""
    tree = Taxonomy.from_lineages([parse_taxon_tag(TAG)])
    return TrainingBatches(
        shards,
        tree,
        TaxonTokens(tree, TextForm("{}"), lambda texts: torch.tensor([[len(text)] for text in texts])),
        build_transform({"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}, {"scale": (1.0, 1.0)}),
        BatchPlan(len(shards), len(shards), 0),
    )


# -- a tar cut off ------------------------------------------------------------------------------------------


def _cut(case: Case, lane: Lane) -> Outcome:
    """What lies whole before the cut is used, what lies across it is told, and the cut itself."""
    folder = lane.folder(case.name)
    found = lane.call("faults.samples:cuts", {**case.facts, "folder": str(folder)}, folder)
    return Outcome(CUTS, CUTS, figures=found)


def cuts(facts: str, answer: str) -> int:
    """In a fork: cut a tar, index it, read an epoch, count."""
    told = json.loads(facts)
    whole = (
        b"".join(sample(f"good{i}") + member(f"good{i}.com.txt", b"a photo of Blackbird.") for i in range(6)) + END
    )
    size = len(whole) // 6  # of a sample, roughly; headers are found again below
    headers = {name: whole.index(name.encode() + b"\0") for i in range(6) for name in
               (f"good{i}.jpg", f"good{i}.taxonTag.txt", f"good{i}.com.txt")}  # fmt: skip
    data = {name: len(JPEG) if name.endswith("jpg") else len(TAG) if "taxon" in name else 21 for name in headers}
    points = np.linspace(0, len(whole) - len(END) - 1, told["of"]).astype(int)
    counts: collections.Counter[str] = collections.Counter()
    for point in points[told["first"] : told["first"] + CUTS].tolist():
        path = Path(told["folder"]) / "odd.tar"
        path.write_bytes(whole[:point])
        control = Path(told["folder"]) / "a control.tar"
        control.write_bytes(sample("control") + END)
        used, bad = ["control"], [("", "damaged tar")]
        for i in range(6):
            seen = [name for name in headers if name.startswith(f"good{i}.") and headers[name] + 512 <= point]
            if not seen:
                continue
            complete = all(headers[name] + 512 + data[name] <= point for name in seen)
            if complete and f"good{i}.taxonTag.txt" in seen:
                used.append(f"good{i}")
            else:
                bad.append((f"good{i}", "no caption|cut off"))
        shards = ShardSet([path, control])
        need_records(f"cut at {point}", [(str(path), *one) for one in bad], [tuple(r) for r in shards.bad])
        for batch in _batches(shards).load(0, 1):
            keys = [shards.key(i) for i in batch.indices.tolist()]
            need(
                not batch.bad and sorted(keys) == sorted(used), f"cut at {point} of {size}: used {keys}, not {used}"
            )
        counts.update(used=len(used), quarantined=len(bad), seen=len(used) + len(bad))
    Path(answer).write_text(json.dumps(counts))
    return 0


# -- training -----------------------------------------------------------------------------------------------


def _train(case: Case, lane: Lane) -> Outcome:
    """A real run whose whole epochs hold the specimens."""
    folder, processes = lane.folder(case.name), case.facts.get("processes", 1)
    data = folder / "shards"
    data.mkdir()
    specimens = [_named(name) for name in case.facts["specimens"]]
    paths = [write(data, one, f"{i:03d}") for i, one in enumerate(specimens)]
    filler = -sum(len(build_index(path).keys) for path in paths) % BATCH + BATCH
    (data / "good.tar").write_bytes(b"".join(sample(f"more{i}") for i in range(filler)) + END)
    times = case.facts.get("epochs", 3)
    more = ("--data.train", str(data), "--data.quarantine-limit", "1", "--optim.epochs", str(times))
    world = World(
        lane, folder / "run", *more, "--data.workers", str(case.facts.get("workers", 0)), processes=processes
    )
    codes = world.wait()
    need(codes == [0] * processes, f"ended with {codes}: {world.printed[-1500:]}")
    bad = [(str(p), *record) for p, one in zip(paths, specimens, strict=True) for record in one.bad]
    unread = [(str(p), *record) for p, one in zip(paths, specimens, strict=True) for record in one.unread]
    need_records("quarantine-index.jsonl", bad, _lines(folder / "run", "quarantine-index.jsonl"))
    need_records("quarantine-N.jsonl", times * unread, _lines(folder / "run", "quarantine-[0-9]*.jsonl"))
    usable = filler + sum(len(expected_used(one)) for one in specimens)
    last = read_log(folder / "run" / "log.jsonl")[-1]
    need(last["used"] == times * usable, f"{last['used']} used, not {times} x {usable}")
    need(last["quarantined"] == times * len(unread), f"{last['quarantined']}, not {times} x {len(unread)}")
    need(last["used"] + last["quarantined"] == BATCH * last["step"], f"{last['step']} steps")
    figures = {"used": last["used"], "quarantined": last["quarantined"] + times * len(bad)}
    return Outcome(len(specimens), len(specimens), figures=figures | {"seen": sum(figures.values())})


def _lines(output: Path, pattern: str) -> list[tuple[str, str, str]]:
    """The records of quarantine files."""
    lines = [line for path in sorted(output.glob(pattern)) for line in path.read_text().splitlines()]
    return [(record["shard"], record["key"], record["reason"]) for record in map(json.loads, lines)]


def _limit(case: Case, lane: Lane) -> Outcome:
    """A run with so many bad samples that it must end, and one with fewer."""
    folder, facts = lane.folder(case.name), case.facts
    data, processes = folder / "shards", facts.get("processes", 1)
    data.mkdir()
    blocks = [sample(f"good{i}") for i in range(facts["good"])]
    blocks += [sample(f"unread{i}", b"") for i in range(facts.get("unread", 0))]
    blocks += [member(f"bad{i}.jpg", JPEG) for i in range(facts.get("bad", 0))]
    (data / "shard.tar").write_bytes(b"".join(blocks) + END)
    more = ("--data.train", str(data), "--optim.epochs", "9")
    world = World(lane, folder / "run", *more, processes=processes)
    codes = world.wait()
    need(codes == [facts["code"]] * processes, f"ended with {codes}: {world.printed[-1500:]}")
    need(re.search(facts["says"], world.printed), f"does not say {facts['says']!r}: {world.printed[-800:]}")
    return Outcome()


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    total = {name: sum(o.figures.get(name, 0) for o in outcomes) for name in ("seen", "used", "quarantined")}
    equals = "=" if total["seen"] == total["used"] + total["quarantined"] else "**is not**"
    return f"seen {total['seen']:,} {equals} used {total['used']:,} + quarantined {total['quarantined']:,}; hung 0"
