"""What work costs: products, special functions, arithmetic, bytes, each over a rate; and what passes between GPUs.

The model behind docs/scaling.md (scaling.py, cluster.py). It is no fit: every rate and assumption is a constant
below, with its source. The same `predict` is held against a CPU's measurements by that machine's own rates.

# M images, N texts, D embed; W devices in H machines of G
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple


class Assumption(NamedTuple):
    """A number of the model and where it is from."""

    value: float
    unit: str
    source: str


ASSUMED: dict[str, Assumption] = {
    "batch": Assumption(32768, "images", "the published recipe for TreeOfLife-10M (train/configs)"),
    "texts": Assumption(30000, "texts", "unique taxa of a batch over seven ranks, about (benchmarks/problems.py)"),
    "width": Assumption(512, "", "ViT-B/16"),
    "devices": Assumption(8, "GPUs", "the question asked of one machine"),
    "ranks": Assumption(7, "", "kingdom to species"),
    "tensor_peak": Assumption(312e12, "FLOP/s", "NVIDIA A100 datasheet, dense fp16 or bf16"),
    "product_share": Assumption(0.60, "of peak", "ASSUMPTION: a fused kernel's share; to be measured (make gpu)"),
    "library_share": Assumption(0.80, "of peak", "ASSUMPTION: a library's large product, where matrices are held"),
    "tower_share": Assumption(0.45, "of peak", "ASSUMPTION: a ViT-B/16 in training; to be measured"),
    "sms": Assumption(108, "", "NVIDIA A100 datasheet"),
    "clock": Assumption(1.41e9, "Hz", "NVIDIA A100 whitepaper, boost clock"),
    "special_per_clock": Assumption(16, "an SM and clock", "CUDA programming guide, throughput at 8.0"),
    "lanes": Assumption(64, "fp32 an SM and clock", "NVIDIA A100 whitepaper"),
    "memory_rate": Assumption(2.039e12, "bytes/s", "NVIDIA A100 80GB SXM datasheet"),
    "memory_share": Assumption(0.85, "of peak", "ASSUMPTION: a streaming kernel's share"),
    "overlap": Assumption(0.5, "", "ASSUMPTION: half of the epilogue hides; none and all are shown too"),
    "per_machine": Assumption(8, "GPUs", "DGX A100"),
    "nvlink": Assumption(300e9, "bytes/s a direction", "NVIDIA A100 datasheet: 600 GB/s both directions"),
    "network": Assumption(25e9, "bytes/s a GPU", "HDR InfiniBand, 200 Gb/s, a card a GPU (DGX A100)"),
    "link_share": Assumption(0.75, "of peak", "ASSUMPTION: what NCCL's rings reach with messages of this size"),
    "start": Assumption(8.4e-6, "s a collective", "NCCL's own model (src/graph/tuning.cc), ring, Simple"),
    "nvlink_hop": Assumption(3.4e-6, "s a hop", "the same; eight A100 measured: 2.4 (nccl-tests, issue 123)"),
    "network_hop": Assumption(9.6e-6, "s a hop", "NCCL's own model, ring, Simple"),
    "message": Assumption(2e-6, "s a peer", "ASSUMPTION: an all-to-all posts a message to every peer"),
    "products": Assumption(4, "of the logits' shape", "made, made anew, and to both gradients; forward alone: 1"),
    "held_products": Assumption(6, "of a tile's shape", "rows and columns apart, each made and to both gradients"),
    "held_passes": Assumption(8, "numbers a logit", "ASSUMPTION: logits, softmax written and read, either pass"),
    "held_bytes": Assumption(6, "bytes a logit", "ASSUMPTION: logits in 16 bit and their log-softmax in fp32"),
    "euclidean_special": Assumption(2, "a logit and pass", "an exponential for its row, one for its column"),
    "lorentz_special": Assumption(4, "a logit and pass", "those, a logarithm and a square root"),
    "euclidean_arithmetic": Assumption(12, "a logit and pass", "ASSUMPTION: counted in the formulas, with masks"),
    "lorentz_arithmetic": Assumption(25, "a logit and pass", "ASSUMPTION: counted in the formulas, with masks"),
    "element_bytes": Assumption(2, "bytes", "features and gradients in 16 bit"),
    "panel_bytes": Assumption(6, "bytes a logit", "backward: dS written once and read twice, 16 bit"),
    "id_bytes": Assumption(16, "bytes a text", "its rank and its taxon, int64"),
    "column_bytes": Assumption(
        16, "bytes a text", "all-reduced in 32 bit: its images; a maximum; two sums together"
    ),
    "round": Assumption(2e-5, "s", "ASSUMPTION: a ring's round posted and awaited, and its kernels launched"),
    "image_layers": Assumption(12, "", "ViT-B/16"),
    "image_width": Assumption(768, "", "ViT-B/16"),
    "image_tokens": Assumption(197, "", "(224 / 16)^2 patches and one token"),
    "text_layers": Assumption(12, "", "CLIP's text tower with ViT-B/16"),
    "text_width": Assumption(512, "", "CLIP's text tower with ViT-B/16"),
    "text_tokens": Assumption(77, "", "CLIP's context, padded; names are shorter, so this is an upper bound"),
    "training_factor": Assumption(3, "forward passes", "a backward pass costs two; no recomputation"),
    "parameters": Assumption(150e6, "", "ViT-B/16 CLIP, both towers, for the gradients' all-reduce"),
    "published_steps": Assumption(30000, "steps", "100 epochs of about 300 (train/configs)"),
    "published_hours": Assumption(36, "hours", "the model card"),
    "gpu_memory": Assumption(80e9, "bytes", "NVIDIA A100 80GB"),
    "usable": Assumption(0.9, "of it", "ASSUMPTION: the rest is the context, NCCL's buffers, fragments"),
    "host_memory": Assumption(1e12, "bytes a machine", "DGX A100 with 1 TB"),
    "host_batches": Assumption(2, "batches", "ASSUMPTION: one at work, one being read"),
    "state_bytes": Assumption(12, "bytes a parameter", "AdamW: master, two moments in fp32; shared out by ZeRO 1"),
    "activation_bytes": Assumption(34, "bytes a token, width, layer", "arXiv 2205.05198, attention not kept"),
    "checkpoint_bytes": Assumption(2, "bytes a token, width, layer", "a layer's input, the rest computed anew"),
    "pixel_bytes": Assumption(602112, "bytes an image", "3 x 224 x 224 in fp32, as the loader gives them"),
    "label_bytes": Assumption(400, "bytes an image", "ASSUMPTION: ids, order and sums of seven ranks"),
    "micro_batch": Assumption(256, "images", "gradient caching: images, and texts, that one pass encodes"),
}


def assumed(name: str) -> float:
    """A number of the model."""
    return ASSUMED[name].value


@contextmanager
def supposing(**values: float) -> Iterator[None]:
    """Inside, these numbers are assumed instead."""
    before = {name: ASSUMED[name] for name in values}
    ASSUMED.update({name: before[name]._replace(value=value) for name, value in values.items()})
    try:
        yield
    finally:
        ASSUMED.update(before)


# -- what devices do ------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What one device does."""

    flop: float  # matrix products
    special: float  # exp, log, sqrt
    arithmetic: float  # other operations on single numbers
    memory_bytes: float  # beyond caches and registers


GEOMETRIES = ("euclidean", "lorentz")
STEPS = ("forward", "forward + backward")


def loss_work(pairs: float, width: int, geometry: str, steps: str, tile_bytes: tuple[float, float]) -> Work:
    """Products and epilogue of that many logits, each of which sends tile_bytes to memory, forward and backward.

    The backward pass makes the logits anew.
    """
    both = steps != "forward"
    return Work(
        flop=(assumed("products") if both else 1) * 2.0 * pairs * width,
        special=assumed(f"{geometry}_special") * pairs * (1 + both),
        arithmetic=assumed(f"{geometry}_arithmetic") * pairs * (1 + both),
        memory_bytes=pairs * (tile_bytes[0] + both * tile_bytes[1]),
    )


def transformer_flop(layers: int, width: int, tokens: int) -> float:
    """Forward FLOP of one sequence: 24 T w^2 of projections and MLP, 4 T^2 w of attention, a layer."""
    return layers * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def tower_flop(tower: str) -> float:
    """Forward FLOP of one "image" or one "text"."""
    return transformer_flop(*(int(assumed(f"{tower}_{x}")) for x in ("layers", "width", "tokens")))


@dataclass(frozen=True)
class Device:
    """Rates of one device that a real program reaches."""

    product_flops: float  # FLOP/s
    special_rate: float  # special functions/s
    arithmetic_rate: float  # other operations/s
    memory_rate: float  # bytes/s
    overlap: float  # share of the smaller of products and epilogue that hides behind the larger


class Times(NamedTuple):
    """Seconds of the parts, and of all."""

    products: float
    epilogue: float
    total: float


def predict(work: Work, device: Device) -> Times:
    """Products and epilogue with their overlap."""
    products = work.flop / device.product_flops
    epilogue = (
        work.special / device.special_rate
        + work.arithmetic / device.arithmetic_rate
        + work.memory_bytes / device.memory_rate
    )
    return Times(products, epilogue, products + epilogue - device.overlap * min(products, epilogue))


def a100(overlap: float | None = None, share: str = "product_share") -> Device:
    """An A100 whose products reach that share of its peak."""
    return Device(
        product_flops=assumed("tensor_peak") * assumed(share),
        special_rate=assumed("sms") * assumed("clock") * assumed("special_per_clock"),
        arithmetic_rate=assumed("sms") * assumed("clock") * assumed("lanes"),
        memory_rate=assumed("memory_rate") * assumed("memory_share"),
        overlap=assumed("overlap") if overlap is None else overlap,
    )


# -- what passes between them ---------------------------------------------------------------------------------


class Transfer(NamedTuple):
    """A collective, and the bytes of the whole that is gathered, reduced or, by one device, sent out."""

    kind: str  # "gather" (or a reduce-scatter), "all_reduce", "all_to_all"
    bytes: float


class Passage(NamedTuple):
    """Seconds on NVLink and on the network, which work at once, and of waiting for messages to pass."""

    inner: float
    outer: float
    waits: float

    @property
    def total(self) -> float:
        return max(self.inner, self.outer) + self.waits


@dataclass(frozen=True)
class Links:
    """Devices in machines of equal size, each device with a network card of its own."""

    per_machine: int
    machines: int
    inner_rate: float  # bytes/s of a direction, of one device
    outer_rate: float
    start: float  # seconds of any collective
    inner_hop: float  # seconds from a device to the next
    outer_hop: float
    message: float  # seconds of posting one message of an all-to-all

    @property
    def devices(self) -> int:
        return self.per_machine * self.machines

    def passage(self, transfer: Transfer) -> Passage:
        """A transfer's seconds.

        Raises:
            ValueError: no such kind of transfer.
        """
        kind, size = transfer
        if kind == "gather":
            return self._ring(size, 1, self.devices - self.machines, self.machines - 1)
        if kind == "all_reduce":  # a reduce-scatter and a gather; what waits is a tree, the quicker of NCCL's two
            return self._ring(size, 2, 2 * (self.per_machine - 1), 2 * math.ceil(math.log2(self.machines)))
        if kind == "all_to_all":
            W, G = self.devices, self.per_machine
            hop = self.outer_hop if W > G else self.inner_hop
            return Passage(
                (G - 1) / W * size / self.inner_rate,
                (W - G) / W * size / self.outer_rate,
                self.start + hop + (W - 1) * self.message,
            )
        raise ValueError(f"kind must be 'gather', 'all_reduce' or 'all_to_all', got {kind!r}")

    def _ring(self, size: float, times: int, inner_hops: int, outer_hops: int) -> Passage:
        """As many rings over all devices as a machine has cards: each leaves the machine by another card."""
        sent = times * (self.devices - 1) / self.devices * size
        leaving = sent / self.per_machine if self.machines > 1 else 0.0
        return Passage(
            (sent - leaving) / self.inner_rate,
            leaving / self.outer_rate,
            self.start + inner_hops * self.inner_hop + outer_hops * self.outer_hop,
        )


def a100_links(per_machine: int, machines: int) -> Links:
    """That many A100 behind NVLink in each of that many machines."""
    share = assumed("link_share")
    return Links(
        per_machine,
        machines,
        assumed("nvlink") * share,
        assumed("network") * share,
        assumed("start"),
        assumed("nvlink_hop"),
        assumed("network_hop"),
        assumed("message"),
    )


def moving(transfers: Sequence[Transfer], links: Links) -> float:
    """Seconds of transfers one after the other."""
    return sum(links.passage(transfer).total for transfer in transfers)


# -- the loss by its ways -------------------------------------------------------------------------------------


def shared_transfers(texts: float) -> dict[str, Transfer]:
    """What LevelContrastiveLoss moves for that many texts, in its order; its images never move.

    A number of each rank that goes along with counts and sums is left out.
    """
    features = texts * assumed("width") * assumed("element_bytes")
    column = texts * assumed("column_bytes") / 4
    return {
        "sizes": Transfer("gather", 0.0),  # how many texts each process has
        "ids": Transfer("gather", texts * assumed("id_bytes")),
        "texts": Transfer("gather", features),
        "counts": Transfer("all_reduce", column),  # how many images carry each text
        "maxima": Transfer("all_reduce", column),
        "sums": Transfer("all_reduce", 2 * column),
        "return": Transfer("all_to_all", features),
    }


def distributed_loss(
    geometry: str, way: str, images: float, texts: float, devices: int
) -> tuple[Work, list[Transfer]]:
    """What one of W devices does for the loss of the whole batch with its gradients, and what all of them move.

    Args:
        geometry: "euclidean" or "lorentz".
        way: "shared": its own images against all texts, every tile computed once in the cluster, as
            LevelContrastiveLoss does. "whole": images and texts gathered, the whole matrix on every device, both
            gradients all-reduced. "local_loss": open_clip's, its own rows and its own columns, every tile computed
            twice in the cluster, so that six products have a tile's shape. With gradients that are
            reduce-scattered.

    Raises:
        ValueError: no such way.
    """
    D, size = int(assumed("width")), assumed("element_bytes")
    tile = 0.0, assumed("panel_bytes")
    all_texts, all_images = Transfer("gather", texts * D * size), Transfer("gather", images * D * size)
    if way == "shared":
        part = loss_work(images * texts / devices, D, geometry, "forward + backward", tile)
        return part, list(shared_transfers(texts).values())
    if way == "whole":
        whole = loss_work(images * texts, D, geometry, "forward + backward", tile)
        gradients = [Transfer("all_reduce", moved.bytes) for moved in (all_texts, all_images)]
        return whole, [all_texts, all_images, *gradients]
    if way == "local_loss":
        dense = 2 * images * texts / devices  # its rows, its columns
        work = Work(
            flop=assumed("held_products") * 2.0 * images * texts * D / devices,
            special=(assumed(f"{geometry}_special") - 1) * dense,  # an exponential, and nothing anew
            arithmetic=assumed(f"{geometry}_arithmetic") * dense,
            memory_bytes=assumed("held_passes") * size * dense,
        )
        return work, [all_texts, all_images, all_texts, all_images]
    raise ValueError(f"way must be 'shared', 'whole' or 'local_loss', got {way!r}")


def tower_seconds(images: float, texts: float, passes: float) -> float:
    """Both towers over that many images and texts, that many times forward (a backward pass counts two)."""
    flop = passes * (images * tower_flop("image") + texts * tower_flop("text"))
    return predict(Work(flop, 0.0, 0.0, 0.0), a100(share="tower_share")).products


def gradient_transfer() -> Transfer:
    """The all-reduce of the parameters' gradients."""
    return Transfer("all_reduce", assumed("parameters") * assumed("element_bytes"))
