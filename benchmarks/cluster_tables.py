"""The plan past one machine as tables: cluster.py's figures, which scaling.py --write puts into docs/scaling.md."""

from __future__ import annotations

import math

from cluster import (
    BATCHES,
    DEVICES,
    FILLS,
    PLAN,
    Step,
    collectives,
    gathered_memory,
    held_memory,
    largest,
    least_images,
    loss_seconds,
    overlap,
    passages,
    return_by_machines,
    ring,
    ring_gains,
    ring_memory,
    texts_of,
    towers,
    waiting,
    workspace,
)
from costs import assumed, gradient_transfer, moving, supposing
from documents import table
from problems import TAXA_OF_RANK, expected_texts

MIB = 1 << 20


def _ms(seconds: float) -> str:
    if seconds < 1e-5:
        return "< 0.01"
    return f"{seconds * 1e3:.{2 if seconds < 0.01 else 1}f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f}" if size >= 10 * MIB else f"{size / MIB:.2g}"


def _signed(share: float) -> str:
    return f"{share:+.2%}" if abs(share) >= 5e-5 else "0"


def _where(step: Step) -> list[str]:
    return [f"{step.batch:,}", str(step.devices)]


def check_table() -> str:
    """The published run by the model's towers alone."""
    step = Step(int(assumed("batch")), int(assumed("devices")))
    hours = (towers(step, assumed("training_factor") + more) * assumed("published_steps") / 3600 for more in (0, 1))
    ways = ("the towers alone", "the towers with checkpointed layers, as configured", "published")
    found = (*hours, assumed("published_hours"))
    return table(["", "hours"], [[way, f"{x:.0f}"] for way, x in zip(ways, found, strict=True)])


def texts_table() -> str:
    """How many texts a batch holds, and how they grow with it."""
    lines, before = [], None
    for batch in (1 << 12, *BATCHES):
        expected = expected_texts(batch)
        texts = sum(expected)
        grows = "" if before is None else f"{math.log(texts / before[1]) / math.log(batch / before[0]):.2f}"
        lines.append([f"{batch:,}", f"{texts:,.0f}", f"{expected[-1]:,.0f}", f"{texts / batch:.2f}", grows])
        before = batch, texts
    lines.append(["without end", f"{sum(TAXA_OF_RANK):,}", f"{TAXA_OF_RANK[-1]:,}", "", "0"])
    return table(["images", "texts", "of them species", "texts an image", "texts ~ images^"], lines)


def time_table() -> str:
    """The loss beside the towers."""
    lines = []
    for step in PLAN:
        gather, columns, back = collectives(step)
        compute = loss_seconds(step)
        both = towers(step, assumed("training_factor"))
        parameters = moving([gradient_transfer()], step.links)
        loss = compute + gather + columns + back
        lines.append(
            [
                *_where(step),
                f"{step.local:,.0f}",
                f"{step.texts:,.0f}",
                *map(_ms, (compute, gather, columns, back)),
                f"**{_ms(loss)}**",
                *map(_ms, (both, parameters)),
                f"{loss / both:.2%}",
            ]
        )
    head = ["batch", "GPUs", "images a GPU", "texts", "compute", "gather", "columns", "return", "**loss**"]
    return table([*head, "towers", "parameters", "loss / towers"], lines)


def links_table() -> str:
    """The two large transfers by link."""
    lines = []
    for step in PLAN:
        moved = passages(step)
        features = step.texts * assumed("width") * assumed("element_bytes")
        cells = [_ms(x) if x else "" for name in ("texts", "return") for x in moved[name]]
        lines.append([*_where(step), _mib(features), *cells, _ms(return_by_machines(step))])
    head = ["batch", "GPUs", "MiB", "gather: NVLink", "network", "waits", "return: NVLink", "network", "waits"]
    return table([*head, "return in two levels"], lines)


def overlap_table() -> str:
    """What can hide behind what, and what that is worth."""
    lines = []
    for step in PLAN:
        o = overlap(step)
        lines.append(
            [
                *_where(step),
                f"{_ms(o.texts)} / {_ms(o.image_forward)}",
                f"{_ms(o.gradient)} / {_ms(o.image_backward)}",
                f"{_ms(o.parameters)} / {_ms(o.last_backward)}",
                _ms(o.plain),
                _ms(o.hidden),
                f"{1 - o.hidden / o.plain:.2%}",
            ]
        )
    head = ["batch", "GPUs", "gather / images forward", "return / images backward", "parameters / last backward"]
    return table([*head, "step, nothing hidden", "all hidden", "saved"], lines)


def memory_table() -> str:
    """What the loss holds on a GPU beside that GPU's own features, against two other ways."""
    lines = []
    for step in PLAN:
        ours = gathered_memory(step.local, step.texts)
        others = ring_memory(step.local, step.block), held_memory(step.batch, step.texts, step.devices)
        lines.append(
            [*_where(step), *map(_mib, ours.values()), f"**{_mib(sum(ours.values()))}**", *map(_mib, others)]
        )
    head = ["batch", "GPUs", "texts", "unit copies", "gradient", "ids", "workspace", "**all**", "ring"]
    return table([*head, "matrices held"], lines)


def largest_table() -> str:
    """The largest batch of each way."""
    lines = []
    for devices in DEVICES:
        for fill in FILLS:
            local, filled = largest(fill, devices)
            lines.append([str(devices), fill.name, f"{local:,}", f"{local * devices:,}", filled])
    return table(["GPUs", "way", "images a GPU", "global batch", "what fills it"], lines)


def ring_table() -> str:
    """All-gather and ring: what the loss waits for beyond its computing, and what a step gains by the ring."""
    lines = []
    for step in PLAN:
        r, w = ring(step), waiting(step)
        rounds = (f"{a * 1e6:,.0f} / {b * 1e6:,.0f}" for a, b in zip(r.compute, r.move, strict=True))
        gains = (_signed(gain) for gain in ring_gains(step))
        saved = sum(gathered_memory(step.local, step.texts).values()) - ring_memory(step.local, step.block)
        lines.append([*_where(step), f"{step.block:,.0f}", *rounds, *map(_ms, w), *gains, _mib(saved)])
    head = ["batch", "GPUs", "texts a block", "forward µs", "backward µs", "all-gather", "hidden", "ring"]
    return table([*head, "step gains", "over hidden", "MiB saved"], lines)


def break_even_table() -> str:
    """From which size on a ring is ahead in time, and what it then gains."""
    lines = []
    for devices in DEVICES:
        gains = {batch: ring_gains(Step(batch, devices)) for batch in (1 << k for k in range(13, 25))}
        line = [str(devices), *(f"{least_images(devices, backward):,.0f}" for backward in (False, True))]
        for way in (0, 1):
            first = min((batch for batch, gain in gains.items() if gain[way] > 0), default=None)
            best = max(gain[way] for gain in gains.values())
            line += ["none" if first is None else f"{first:,}", f"{best:.2%}" if first else ""]
        lines.append(line)
    head = ["GPUs", "hides forward from", "backward from", "ahead of all-gather from", "by at most"]
    return table([*head, "ahead of a hidden one from", "by at most"], lines)


def text_memory_table() -> str:
    """What gathered texts take of a GPU by their number, whatever brought so many."""
    a_text = sum(x for name, x in gathered_memory(1, 1).items() if name != "workspace")
    whole = assumed("gpu_memory")
    lines = []
    for texts, what in (
        (texts_of(BATCHES[0]), "a batch of 32,768 images"),
        (texts_of(BATCHES[-1]), "a batch of 1,048,576 images"),
        (sum(TAXA_OF_RANK), "the whole tree of life"),
        (BATCHES[-1], "a caption of its own for each of 1,048,576 images"),
        (whole / 10 / a_text, "a tenth of the memory: **from here on a ring pays**"),
        (whole / 2 / a_text, "half of the memory: from here on it is needed"),
    ):
        blocks = [_mib(ring_memory(0, texts / devices) - workspace(0, 0)) for devices in (8, 64)]
        lines.append([f"{texts:,.0f}", what, _mib(texts * a_text), f"{texts * a_text / whole:.1%}", *blocks])
    return table(["texts", "which are", "gathered, MiB", "of 80 GB", "ring of 8, MiB", "ring of 64, MiB"], lines)


DOUBTS: dict[str, dict[str, float]] = {
    "as assumed": {},
    "network half as quick": {"network": 0.5},
    "hops three times as long": {"nvlink_hop": 3, "network_hop": 3, "start": 3, "message": 3},
    "a ring's round four times as quick": {"round": 0.25},
    "towers at 90% of peak": {"tower_share": 2},
    "GPUs three times as quick on the same links": {"tensor_peak": 3, "clock": 3, "memory_rate": 3},
    "texts of 1,024 numbers": {"width": 2},
}


def doubt_table() -> str:
    """The step's largest gains in the plan, should an assumption be off."""
    lines = []
    for name, factors in DOUBTS.items():
        with supposing(**{key: assumed(key) * factor for key, factor in factors.items()}):
            gains = [ring_gains(step) for step in PLAN]
            hiding = [1 - o.hidden / o.plain for o in map(overlap, PLAN) if o.plain > 0.25]
            memory = max(sum(gathered_memory(s.local, s.texts).values()) for s in PLAN)
        best = (f"{max(way):.2%}" for way in zip(*gains, strict=True))
        lines.append([name, *best, f"{max(hiding):.2%}", _mib(memory)])
    head = [
        "if",
        "ring over all-gather",
        "ring over a hidden one",
        "hiding, steps over 0.25 s",
        "most gathered, MiB",
    ]
    return table(head, lines)


def tables() -> dict[str, str]:
    """Every table of the plan by its name."""
    return {
        "cluster check": check_table(),
        "texts": texts_table(),
        "cluster time": time_table(),
        "cluster links": links_table(),
        "cluster overlap": overlap_table(),
        "cluster memory": memory_table(),
        "cluster largest": largest_table(),
        "cluster ring": ring_table(),
        "cluster break-even": break_even_table(),
        "cluster text memory": text_memory_table(),
        "cluster doubts": doubt_table(),
    }
