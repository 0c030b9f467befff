"""The plan past one machine: what the loss takes of time, links and memory on 8 to 512 GPUs, batches to a million.

Paper, by the model of costs.py: machines of eight A100, Lorentz geometry, every image supervised at all ranks. How
many texts a batch holds is expected of the tree of life in problems.py.

What of it docs/scaling.md shows: cluster_tables.py.

# M images, N texts, D embed; W devices in H machines of G; B = M / W local images
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from costs import (
    Links,
    Passage,
    Transfer,
    a100,
    a100_links,
    assumed,
    distributed_loss,
    gradient_transfer,
    loss_work,
    moving,
    predict,
    shared_transfers,
    tower_seconds,
)
from problems import expected_texts

from bioclip_hc.kernels.configs import TABLE

BATCHES = (1 << 15, 1 << 17, 1 << 19, 1 << 20)
DEVICES = (8, 64, 512)
KERNEL = TABLE[80, "16", "lorentz"]
TILE = KERNEL.forward.rows  # images and texts come in tiles of about this many


@cache
def texts_of(batch: int) -> float:
    """Distinct taxa over all ranks that a batch is expected to hold."""
    return sum(expected_texts(batch))


@dataclass(frozen=True)
class Step:
    """One global batch on that many GPUs."""

    batch: int
    devices: int

    @property
    def texts(self) -> float:
        return texts_of(self.batch)

    @property
    def local(self) -> float:
        return self.batch / self.devices

    @property
    def links(self) -> Links:
        per_machine = int(assumed("per_machine"))
        return a100_links(per_machine, self.devices // per_machine)

    @property
    def block(self) -> float:
        """Texts that one process encodes."""
        return self.texts / self.devices


PLAN = tuple(Step(batch, devices) for batch in BATCHES for devices in DEVICES)


# -- time -----------------------------------------------------------------------------------------------------


def whole_tiles(rows: float) -> float:
    """What that many rows cost where they do not fill a tile."""
    return max(rows, TILE)


def loss_seconds(step: Step) -> float:
    """Computing the loss with its gradients on one GPU: its own images against all texts."""
    images = whole_tiles(step.local) * step.devices
    return predict(distributed_loss("lorentz", "shared", images, step.texts, step.devices)[0], a100()).total


def passages(step: Step) -> dict[str, Passage]:
    """What each collective of the loss takes."""
    return {name: step.links.passage(moved) for name, moved in shared_transfers(step.texts).items()}


def collectives(step: Step) -> tuple[float, float, float]:
    """Seconds of what precedes the loss, of the columns within it, and of the gradient's return."""
    times = {name: passage.total for name, passage in passages(step).items()}
    before = sum(times[name] for name in ("sizes", "ids", "texts", "counts"))
    return before, times["maxima"] + times["sums"], times["return"]


def return_by_machines(step: Step) -> float:
    """The gradient's return in two levels: in 16 bit inside a machine, then its sums, in fp32, between machines."""
    links, numbers = step.links, step.texts * assumed("width")
    inside = Transfer("all_to_all", numbers * assumed("element_bytes"))
    between = Transfer("all_to_all", 4 * numbers / links.per_machine)
    seconds = moving([inside], a100_links(links.per_machine, 1))
    return seconds + (moving([between], a100_links(1, links.machines)) if links.machines > 1 else 0.0)


def towers(step: Step, passes: float) -> float:
    """One GPU's images and its share of the texts, that many times forward; a backward pass counts two."""
    return tower_seconds(step.local, step.block, passes)


class Overlap(NamedTuple):
    """Seconds of what moves beside what it can hide behind; and of the step with nothing and all of it hidden."""

    texts: float
    image_forward: float
    gradient: float
    image_backward: float
    parameters: float
    last_backward: float
    plain: float
    hidden: float


def overlap(step: Step) -> Overlap:
    """Texts are encoded first and gathered while images are, with all that hangs on ids alone; their gradient
    returns while images go backward.

    Parameters are reduced layer by layer while the backward pass goes on, with gradient caching that of the last
    micro-batch only. Nothing hides the columns' maxima and sums: the loss waits for them.
    """
    gather, columns, back = collectives(step)
    parameters = moving([gradient_transfer()], step.links)
    micro = assumed("micro_batch")
    hides = {
        "image_forward": tower_seconds(step.local, 0, 1),
        "image_backward": tower_seconds(step.local, 0, 2),
        "last_backward": tower_seconds(min(step.local, micro), min(step.block, micro), 2),
    }
    work = loss_seconds(step) + towers(step, assumed("training_factor"))
    plain = work + gather + columns + back + parameters
    exposed = (
        max(0.0, gather - hides["image_forward"])
        + max(0.0, back - hides["image_backward"])
        + max(0.0, parameters - hides["last_backward"])
    )
    hidden = work + columns + exposed
    return Overlap(
        gather,
        hides["image_forward"],
        back,
        hides["image_backward"],
        parameters,
        hides["last_backward"],
        plain,
        hidden,
    )


# -- a ring of text blocks ------------------------------------------------------------------------------------


class Ring(NamedTuple):
    """Seconds of a round's computing and moving, forward and backward, and of the whole loss."""

    compute: tuple[float, float]
    move: tuple[float, float]
    total: float


def ring(step: Step) -> Ring:
    """The loss where blocks of texts go around, each GPU's images meeting one block a round, and none is gathered.

    Two rings, as the links want it: inside a machine a block moves on every round, between machines every G-th,
    each GPU by its own card. Forward, a block takes its columns' maxima and sums along; backward, those and its
    gradient in fp32, which must also come home.
    """
    links, D = step.links, assumed("width")
    pairs = whole_tiles(step.local) * whole_tiles(step.block)
    tile = 0.0, assumed("panel_bytes")
    forward = predict(loss_work(pairs, int(D), "lorentz", "forward", tile), a100()).total
    backward = predict(loss_work(pairs, int(D), "lorentz", "forward + backward", tile), a100()).total - forward
    size, numbers = assumed("element_bytes"), assumed("column_bytes")
    move = tuple(_round_of(links, step.block * (D * width + numbers)) for width in (size, size + 4))
    rounds = [max(*both, assumed("round")) for both in zip((forward, backward), move, strict=True)]
    W = step.devices
    total = (W - 1) * rounds[0] + forward + W * rounds[1] + move[1]
    return Ring((forward, backward), (move[0], move[1]), total)


def _round_of(links: Links, size: float) -> float:
    """Seconds a round of moving blocks of that many bytes to the next GPU, and in G rounds to the next machine."""
    inner = size / links.inner_rate + links.inner_hop
    outer = (size / links.outer_rate + links.outer_hop) / links.per_machine if links.machines > 1 else 0.0
    return max(inner, outer)


class Waiting(NamedTuple):
    """Seconds that the loss takes beyond its computing."""

    gathered: float  # all-gather, nothing hidden
    hidden: float  # all-gather, texts and gradient behind the towers
    ring: float


def waiting(step: Step) -> Waiting:
    """The all-gather with and without overlap, and the ring."""
    compute, times = loss_seconds(step), overlap(step)
    parameters = max(0.0, times.parameters - times.last_backward)
    work = compute + towers(step, assumed("training_factor"))
    return Waiting(
        times.plain - work - times.parameters, times.hidden - work - parameters, ring(step).total - compute
    )


def ring_gains(step: Step) -> tuple[float, float]:
    """Share of a step that the ring saves: of one with nothing hidden, and of one with everything hidden."""
    waits, whole = waiting(step), overlap(step)
    return (waits.gathered - waits.ring) / whole.plain, (waits.hidden - waits.ring) / whole.hidden


def least_images(devices: int, backward: bool) -> float:
    """Images a GPU from which a ring's round computes for longer than its block moves; waits left out.

    B c >= (bytes of a text) / rate, with c the seconds of one image and one text and the slower of both rings.
    """
    D, tile = assumed("width"), (0.0, assumed("panel_bytes"))
    pair = predict(loss_work(1, int(D), "lorentz", "forward", tile), a100()).total
    if backward:
        pair = predict(loss_work(1, int(D), "lorentz", "forward + backward", tile), a100()).total - pair
    links = Step(devices, devices).links
    size = D * (assumed("element_bytes") + 4 * backward) + assumed("column_bytes")
    rate = min(links.inner_rate, links.per_machine * links.outer_rate if links.machines > 1 else math.inf)
    return size / rate / pair


# -- memory ---------------------------------------------------------------------------------------------------


def workspace(images: float, texts: float) -> float:
    """What the kernels hold in either pass, whichever is more: a panel of dS; sums that await their addition."""
    row_sums = 8 * images * (texts / (KERNEL.forward.cols * KERNEL.chunk) + assumed("ranks"))
    return max(KERNEL.panel, KERNEL.share + row_sums)


def gathered_memory(images: float, texts: float) -> dict[str, float]:
    """Bytes of ours on one GPU at the end of the backward pass, when they are most, but for its own features."""
    numbers, size = texts * assumed("width"), assumed("element_bytes")
    return {
        "texts": numbers * size,
        "unit copies": numbers * size,
        "gradient": numbers * (4 + size),  # summed in fp32, handed on in 16 bit
        "ids": texts * (assumed("id_bytes") + assumed("column_bytes")),
        "workspace": workspace(images, texts),
    }


def ring_memory(images: float, block: float) -> float:
    """Bytes of a ring: a block at work, its unit copy, a block arriving; both blocks' gradients in fp32."""
    size = assumed("element_bytes")
    a_text = assumed("width") * (2 * size + size + 2 * 4) + 2 * (assumed("id_bytes") + assumed("column_bytes"))
    return block * a_text + workspace(images, block)


def held_memory(batch: float, texts: float, devices: int) -> float:
    """Bytes of open_clip's local_loss: all features with their gradients, and both its matrices."""
    features = (batch + texts) * assumed("width") * 2 * assumed("element_bytes")
    return features + 2 * batch * texts / devices * assumed("held_bytes")


def activations(tower: str, sequences: float, checkpointed: bool) -> float:
    """Bytes that the backward pass of a tower wants of the forward pass; checkpointed, one layer's at a time."""
    layers, width, tokens = (assumed(f"{tower}_{x}") for x in ("layers", "width", "tokens"))
    layer = sequences * width * tokens
    if checkpointed:
        return layer * (layers * assumed("checkpoint_bytes") + assumed("activation_bytes"))
    return layer * layers * assumed("activation_bytes")


class Fill(NamedTuple):
    """A way of training, by what it holds."""

    name: str
    cached: bool = False  # run.micro_batch: pixels of one at a time, the rest on the host; features of all
    checkpointed: bool = False
    matrices: bool = False  # the loss is open_clip's local_loss

    def parts(self, step: Step) -> dict[str, float]:
        """Bytes on one GPU. The optimizer's state is shared out (ZeRO 1)."""
        D, size = assumed("width"), assumed("element_bytes")
        most = assumed("micro_batch") if self.cached else math.inf
        images, texts = min(step.local, most), min(step.block, most)
        of_images = step.local * D * (2 * size + 4)  # unit copies, gradient and its sums
        loss = sum(gathered_memory(step.local, step.texts).values()) + of_images
        return {
            "parameters": assumed("parameters") * (2 * size + assumed("state_bytes") / step.devices),
            "activations": activations("image", images, self.checkpointed)
            + activations("text", texts, self.checkpointed),
            "features": 2 * size * D * (step.local + step.block) if self.cached else 0.0,
            "pixels": assumed("pixel_bytes") * images,
            "labels": assumed("label_bytes") * step.local,
            "loss": held_memory(step.batch, step.texts, step.devices) if self.matrices else loss,
        }

    def host_bytes(self, step: Step) -> float:
        """Bytes of a GPU's pixels in its machine's memory; that is not asked where the GPU holds them too."""
        return assumed("host_batches") * assumed("pixel_bytes") * step.local if self.cached else 0.0


FILLS = (
    Fill("one pass"),
    Fill("one pass, layers checkpointed", checkpointed=True),
    Fill("gradient caching", cached=True),
    Fill("gradient caching, open_clip's loss, matrices held", cached=True, matrices=True),
)


def largest(fill: Fill, devices: int) -> tuple[int, str]:
    """The most images a GPU that fit, in whole tiles, and what fills the memory."""
    room = assumed("gpu_memory") * assumed("usable")
    host = assumed("host_memory") * assumed("usable") / assumed("per_machine")

    def step(tiles: int) -> Step:
        return Step(tiles * TILE * devices, devices)

    def fits(tiles: int) -> bool:
        return sum(fill.parts(step(tiles)).values()) <= room and fill.host_bytes(step(tiles)) <= host

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    parts = fill.parts(step(high))
    return low * TILE, max(parts, key=parts.__getitem__) if sum(parts.values()) > room else "the host's memory"
