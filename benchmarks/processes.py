"""Several processes against one: what the loss gives, computes and sends, and how texts are shared out.

    python benchmarks/processes.py            print the tables
    python benchmarks/processes.py --write    put them into docs/distributed.md

The tests ask for the same figures. Processes talk by gloo; bytes are those of the loopback interface in a network
namespace of their own, which Linux gives to root and, mostly, to everybody.

# W processes, B images of the global batch, N its distinct texts, R ranks, F features, D embed
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import multiprocessing
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bioclip_hc.data.samplers import supervise, unique_texts
from bioclip_hc.distributed import share_of_texts, share_unique_texts
from bioclip_hc.kernels import panel
from bioclip_hc.losses import LevelContrastiveLoss

DOCUMENT = Path(__file__).parents[1] / "docs" / "distributed.md"
B, R, F, D = 24, 4, 6, 5
SIZES = (2, 4)


# -- processes ------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """What one process knows of them all."""

    rank: int
    size: int


def run_world(task: Callable[..., Any], size: int, *arguments: Any, isolated: bool = False) -> list[Any]:
    """task(World, *arguments) on each of `size` processes, in order of processes.

    task: a function of a module. isolated: in a network namespace of their own.

    Raises:
        PermissionError: the kernel gives this user no namespace.
        RuntimeError: a process failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "bioclip_hc.losses"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_start, args=(folder, task, size, arguments, isolated))]
        if not isolated:
            work = (folder, task, size, arguments)
            processes = [context.Process(target=_work, args=(rank, *work)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        if isolated and codes == [REFUSED]:
            raise PermissionError("the kernel gives no network namespace to this user")
        if any(codes):
            raise RuntimeError(f"{task.__name__} failed on {size} processes, exit codes {codes}")
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]


REFUSED = 77  # an exit code


def _start(folder: str, task: Callable[..., Any], size: int, arguments: tuple[Any, ...], isolated: bool) -> None:
    """Leave for a new network namespace, and fork the processes there."""
    try:
        _isolate()
    except OSError:
        os._exit(REFUSED)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    context = multiprocessing.get_context("fork")  # nothing has run here yet that a fork could break
    processes = [context.Process(target=_work, args=(rank, folder, task, size, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        os._exit(1)


def _isolate() -> None:
    """Enter a new network namespace, its loopback interface up.

    Raises:
        OSError: not permitted.
    """
    new_user, new_network = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_network) and libc.unshare(new_user | new_network):
        raise OSError(ctypes.get_errno(), "unshare")
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, get_flags, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack("16xh14x", answer)
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", flags | up))


def _work(rank: int, folder: str, task: Callable[..., Any], size: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=5))
    torch.save(task(World(rank, size), *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# -- a batch --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One loss of the same batch.

    sampler: "all" ranks supervise an image, or "one", balanced. texts: a process encodes the texts of its "own"
    images, or a "share" of all. images: in "even" numbers, or all but the last process has them ("lopsided").
    """

    sampler: str
    geometry: str
    dtype: torch.dtype
    texts: str
    images: str = "even"

    def __str__(self) -> str:
        return "-".join([self.sampler, self.geometry, str(self.dtype)[6:], self.texts, self.images])


CASES = [
    Case(*options)
    for options in product(
        ("all", "one"), ("lorentz", "euclidean"), (torch.float32, torch.float64), ("own", "share"), ("even",)
    )
]
CASES += [Case("all", "lorentz", torch.float64, "own", "lopsided")]


def global_taxa(sampler: str) -> np.ndarray:
    """(B, R) taxa of a tree; the second half of the images lacks rank 2, some images know less, one nothing."""
    rng = np.random.default_rng(0)
    path, columns = np.zeros(B, dtype=np.int64), []
    for _ in range(R):
        path = path * 3 + rng.integers(0, 3, B)
        columns.append(path)
    taxa = np.stack(columns, 1)
    taxa[B // 2 :, 2] = -1
    taxa[rng.random((B, R)) < 0.15] = -1
    taxa[-1] = -1
    return taxa if sampler == "all" else supervise(taxa, "balanced", 0, 0)


def own_images(case: Case, world: World) -> slice:
    """Which of the batch's images a process holds."""
    if case.images == "lopsided" and world.size > 1:
        holders = world.size - 1
        return slice(*share_of_texts(B, world.rank, holders)) if world.rank < holders else slice(0, 0)
    return slice(*share_of_texts(B, world.rank, world.size))


def own_texts(case: Case, taxa: np.ndarray) -> tuple[Tensor, Tensor]:
    """rank and taxon (U,) of the texts that a process with these images encodes."""
    rank, taxon, _ = unique_texts(taxa)
    ids = torch.from_numpy(rank), torch.from_numpy(taxon)
    return share_unique_texts(*ids) if case.texts == "share" else ids


def pixels(dtype: torch.dtype) -> Tensor:
    """(B, F), of all images."""
    return torch.randn(B, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def words(rank: Tensor, taxon: Tensor, dtype: torch.dtype) -> Tensor:
    """(U, F) of texts; they depend on what the text is only."""
    table = torch.randn(R, 3**R, F, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return table[rank, taxon].to(dtype)


# -- one loss, whoever computes it ----------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a process has of a case: the loss, the gradients averaged over processes, pairs it computed, texts."""

    loss: float
    gradients: list[Tensor]
    pairs: int
    texts: int


def compute_cases(world: World) -> list[Outcome]:
    """All CASES, as one process."""
    return [compute(world, case) for case in CASES]


def compute(world: World, case: Case) -> Outcome:
    """One case."""
    g = torch.Generator().manual_seed(3)
    shapes = (D, F), (D, F), (1,), (1,)
    parameters = [torch.randn(shape, generator=g, dtype=torch.float64) * 0.5 for shape in shapes]
    of_image, of_text, scale, curv = parameters = [p.to(case.dtype).requires_grad_() for p in parameters]
    images = own_images(case, world)
    taxa = global_taxa(case.sampler)[images]
    rank, taxon = own_texts(case, taxa)
    features = pixels(case.dtype)[images] @ of_image.T, words(rank, taxon, case.dtype) @ of_text.T
    loss = LevelContrastiveLoss(tuple("abcd"), case.geometry)
    with counted_pairs() as count:
        out = loss(*features, torch.from_numpy(taxa), rank, taxon, scale.exp(), curv.exp()).loss
        gradients = list(torch.autograd.grad(out, parameters, materialize_grads=True))
    for gradient in gradients:
        average(gradient, world)
    return Outcome(out.item(), gradients, sum(count), len(rank))


def average(x: Tensor, world: World) -> None:
    """What DDP and DeepSpeed do to a gradient."""
    dist.all_reduce(x)
    x /= world.size


class counted_pairs:
    """Within it, a list that grows by the pairs (image, text) of every tile whose product is computed."""

    def __enter__(self) -> list[int]:
        counts: list[int] = []
        self._tiles = panel.Problem.tiles

        def tiles(problem: panel.Problem, rank: panel.Rank, cols: slice) -> Iterator[Any]:
            for found in self._tiles(problem, rank, cols):
                counts.append(found[3].product.numel())
                yield found

        panel.Problem.tiles = tiles  # type: ignore[method-assign]
        return counts

    def __exit__(self, *_: object) -> None:
        panel.Problem.tiles = self._tiles  # type: ignore[method-assign]


def difference(found: Sequence[Outcome], alone: Outcome) -> tuple[float, float]:
    """Largest relative difference of the loss, and of a gradient by norm, between processes and one."""
    of_loss = max(abs(outcome.loss / alone.loss - 1) for outcome in found)
    pairs = ((x, y) for outcome in found for x, y in zip(outcome.gradients, alone.gradients, strict=True))
    size = max(float(y.norm()) for y in alone.gradients)
    return of_loss, max(float((x - y).norm()) / max(float(y.norm()), 1e-3 * size) for x, y in pairs)


# -- several steps --------------------------------------------------------------------------------------------


def train(world: World, dtype: torch.dtype, steps: int = 5) -> list[Tensor]:
    """Parameters of two small towers after some steps of SGD, each step on another supervision of the batch."""
    torch.manual_seed(0)
    towers = nn.ModuleList(nn.Sequential(nn.Linear(F, 8), nn.GELU(), nn.Linear(8, D)) for _ in range(2)).to(dtype)
    scale = nn.Parameter(torch.ones(1, dtype=dtype))
    parameters = [*towers.parameters(), scale]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    loss = LevelContrastiveLoss(tuple("abcd"))
    for step in range(steps):
        case = Case("all", "lorentz", dtype, ("own", "share")[step % 2])
        images = own_images(case, world)
        taxa = supervise(global_taxa("all"), ("all", "balanced")[step % 2], 0, step)[images]
        rank, taxon = own_texts(case, taxa)
        image, text = towers[0](pixels(dtype)[images]), towers[1](words(rank, taxon, dtype))
        optimizer.zero_grad()
        loss(image, text, torch.from_numpy(taxa), rank, taxon, scale.exp(), 1.0).loss.backward()
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            average(p.grad, world)
        optimizer.step()
    return [p.detach() for p in parameters]


# -- bytes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """A step whose bytes are counted: N texts of width D in equal shares, W images."""

    dtype: torch.dtype
    texts: int = 2048
    width: int = 256

    def forward_bytes(self, size: int) -> float:
        """What a process sends until the loss is known.

        A gather brings every process the others' shares; an all-reduce sends twice as much of its vector. Features
        and ids (two int64) are gathered; four numbers of 4 bytes are reduced for each text (images that carry it,
        largest logsumexp, sum, nll), and two for each rank.
        """
        columns = 4 * (4 * self.texts + 2 * R)
        gathered = self.texts * (self.width * self.dtype.itemsize + 16)
        return (size - 1) / size * (gathered + 2 * columns)

    def backward_bytes(self, size: int) -> float:
        """What a process sends for the gradients of the loss: those of texts that are not its own."""
        return (size - 1) / size * self.texts * self.width * self.dtype.itemsize


TRAFFIC = [Traffic(torch.float32), Traffic(torch.bfloat16)]


def count_bytes(world: World, steps: int = 3) -> list[tuple[float, float]]:
    """Bytes that a process sends (their mean) in the forward and in the backward pass, for each of TRAFFIC."""
    found = []
    for t in TRAFFIC:
        rank, taxon = (x.chunk(world.size)[world.rank] for x in (torch.arange(t.texts) % R, torch.arange(t.texts)))
        taxa = torch.stack([taxon[rank == r][:1] for r in range(R)], 1)  # one image
        image, text = (torch.randn(n, t.width).to(t.dtype).requires_grad_() for n in (1, len(rank)))
        loss = LevelContrastiveLoss(tuple("abcd"))
        sent = [0, 0]
        for step in range(steps + 1):  # the first opens connections
            before = loopback_bytes()
            out = loss(image, text, taxa, rank, taxon, torch.tensor(5.0), 1.0).loss
            between = loopback_bytes()
            torch.autograd.grad(out, text)
            after = loopback_bytes()
            if step:
                sent[0] += between - before
                sent[1] += after - between
        found.append((sent[0] / steps / world.size, sent[1] / steps / world.size))
    return found


def loopback_bytes() -> int:
    """Bytes sent in this network namespace so far, at a moment when no process sends; all call it."""
    dist.barrier()
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
    (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    dist.barrier()
    return int(counters[8])


# -- work -----------------------------------------------------------------------------------------------------


def count_seconds(world: World, images: int, repetitions: int = 3) -> float:
    """Least CPU seconds of this process in the loss, forward and backward: as many texts as images, one rank."""
    own = slice(*share_of_texts(images, world.rank, world.size))
    g = torch.Generator().manual_seed(world.rank)
    features = [torch.randn(own.stop - own.start, 512, generator=g).mul_(512**-0.5) for _ in range(2)]
    image, text = (x.requires_grad_() for x in features)
    taxon = torch.arange(own.start, own.stop)
    loss = LevelContrastiveLoss(("species",))
    seconds = []
    for _ in range(repetitions):
        dist.barrier()
        start = time.process_time()
        loss(image, text, taxon[:, None], torch.zeros_like(taxon), taxon, torch.tensor(10.0), 1.0).loss.backward()
        seconds.append(time.process_time() - start)
    return min(seconds)


# -- shares of texts ------------------------------------------------------------------------------------------


def shared_nodes(images: int, sizes: Sequence[int]) -> tuple[str, list[tuple[str, int, int, int]]]:
    """Where taxa are from, and rows (order of texts, W, nodes encoded by all processes, most by one)."""
    from towers import FORM, draw_lineages, read_taxonomy

    from bioclip_hc.data.text import TaxonTokens
    from bioclip_hc.model import get_tokenizer

    taxonomy, source = read_taxonomy()
    _, taxa, _ = unique_texts(draw_lineages(taxonomy, images))
    tokens = TaxonTokens(taxonomy, FORM, get_tokenizer("ViT-B-16"))
    depth_first = np.lexsort(taxonomy.lineages.T[::-1]).argsort()
    rows = []
    for size in (1, *sizes):
        for name, order in (("by rank", taxa), ("depth first", taxa[depth_first[taxa].argsort()])):
            packs = (tokens.packed(order[slice(*share_of_texts(len(order), p, size))]) for p in range(size))
            nodes = [len(packed.node[packed.node >= 0].unique()) for packed in packs]
            rows.append((name, size, sum(nodes), max(nodes)))
    return f"{source}, {images} images, {len(taxa)} texts", rows


# -- the document ---------------------------------------------------------------------------------------------


def equality_table() -> str:
    """Losses and gradients of several processes beside those of one."""
    from documents import table

    alone = run_world(compute_cases, 1)[0]
    found = {size: run_world(compute_cases, size) for size in SIZES}
    lines = []
    for i, case in enumerate(CASES):
        outcomes = {size: [outcomes[i] for outcomes in found[size]] for size in SIZES}
        apart = [difference(of_size, alone[i]) for of_size in outcomes.values()]
        losses, gradients = (", ".join(f"{x:.1e}" for x in kind) for kind in zip(*apart, strict=True))
        pairs = (sum(outcome.pairs for outcome in of_size) / alone[i].pairs for of_size in outcomes.values())
        texts = "; ".join(" ".join(str(outcome.texts) for outcome in of_size) for of_size in outcomes.values())
        options = case.sampler, case.geometry, str(case.dtype)[6:], case.texts, case.images
        lines.append([*options, texts, losses, gradients, ", ".join(f"{x:.2f}" for x in pairs)])
    head = ["ranks", "geometry", "dtype", "texts", "images", "texts of each", "loss", "gradients", "pairs"]
    return table(head, lines)


def training_table() -> str:
    """Parameters after steps of SGD."""
    from documents import table

    lines = []
    for dtype in (torch.float32, torch.float64):
        alone = run_world(train, 1, dtype)[0]
        for size in SIZES:
            found = run_world(train, size, dtype)
            apart = max(float((x - y).abs().max()) for one in found for x, y in zip(one, alone, strict=True))
            lines.append([str(dtype)[6:], str(size), f"{apart:.1e}"])
    return table(["dtype", "W", "largest difference of a parameter"], lines)


def bytes_table() -> str:
    """Bytes that a process sends in a step, counted and by formula."""
    from documents import table

    lines = []
    for size in SIZES:
        for t, counted in zip(TRAFFIC, run_world(count_bytes, size, isolated=True)[0], strict=True):
            formulas = t.forward_bytes(size), t.backward_bytes(size)
            for name, sent, formula in zip(("forward", "backward"), counted, formulas, strict=True):
                options = str(size), str(t.dtype)[6:], name
                lines.append([*options, f"{formula:,.0f}", f"{sent:,.0f}", f"{sent / formula:.3f}"])
    return table(["W", "features", "pass", "formula", "counted", "counted / formula"], lines)


def work_table() -> str:
    """CPU seconds of the loss, over all processes and of one."""
    from documents import table

    images, lines = 8192, []
    for size in (1, *SIZES):
        seconds = run_world(count_seconds, size, images)
        lines.append([str(size), f"{sum(seconds):.2f}", f"{max(seconds):.2f}"])
    return table(["W", "CPU seconds, all processes", "most of one"], lines)


def nodes_table() -> str:
    """Nodes of packed texts by the order in which texts are shared out."""
    from documents import table

    source, rows = shared_nodes(4096, (4, 8))
    lines = [[name, str(size), f"{nodes:,}", f"{most:,}"] for name, size, nodes, most in rows]
    return source + ":\n\n" + table(["shared out", "W", "nodes, all processes", "most of one"], lines)


TABLES = {
    "equality": equality_table,
    "training": training_table,
    "work": work_table,
    "bytes": bytes_table,
    "nodes": nodes_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    parser.add_argument("--only", choices=TABLES, action="append", help="this table; may be repeated")
    options = parser.parse_args()
    from documents import update

    for name in options.only or TABLES:
        body = TABLES[name]()
        if options.write:
            update(DOCUMENT, f"<!-- {name} -->", f"<!-- {name} end -->", body)
        print(f"{name}\n\n{body}\n")


if __name__ == "__main__":
    main()
