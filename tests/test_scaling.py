"""The paper model of docs/scaling.md: its figures by a second reckoning, by hand or by playing it through."""

import importlib
import math
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bioclip_hc import LevelContrastiveLoss, distributed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
cluster, cluster_tables, costs, problems, scaling = map(
    importlib.import_module, ("cluster", "cluster_tables", "costs", "problems", "scaling")
)
Step, Transfer, assumed = cluster.Step, costs.Transfer, costs.assumed
SMALL = Step(1 << 15, 8)  # the published recipe
LARGE = Step(1 << 20, 512)


def cells(table, *start):
    """The cells of the one line that starts so."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (found,) = [line for line in lines if line[: len(start)] == list(start)]
    return found


# -- what work costs


DEVICE = costs.Device(100.0, 10.0, 20.0, 5.0, overlap=0.0)
WORK = costs.Work(flop=200.0, special=10.0, arithmetic=20.0, memory_bytes=5.0)
# a byte a second inside, half a byte between machines; waits of 1, 10 and 100
LINKS = costs.Links(4, 3, 1.0, 0.5, start=1000.0, inner_hop=1.0, outer_hop=10.0, message=100.0)


def test_a_prediction_adds_up():
    assert costs.predict(WORK, DEVICE) == costs.Times(2.0, 3.0, 5.0)
    assert costs.predict(WORK, replace(DEVICE, overlap=1.0)).total == 3
    assert costs.predict(WORK, replace(DEVICE, overlap=0.5)).total == 4


def test_the_work_of_a_loss():
    forward = costs.loss_work(100, 8, "euclidean", "forward", (8.0, 20.0))
    both = costs.loss_work(100, 8, "lorentz", "forward + backward", (8.0, 20.0))
    assert (forward.flop, forward.special, forward.memory_bytes) == (1600, 200, 800)
    assert (both.flop, both.special, both.memory_bytes) == (6400, 800, 2800)
    assert both.arithmetic > 2 * forward.arithmetic


def played_ring(machines, per_machine, size):
    """Bytes that each device sends inside its machine, and out of it, in an all-gather played step by step."""
    W, inner, outer = machines * per_machine, Counter(), Counter()
    for channel in range(per_machine):  # a ring that leaves every machine by the card of device `channel`
        within = [(channel + 1 + d) % per_machine for d in range(per_machine)]
        order = [(machine, d) for machine in range(machines) for d in within]
        for place, sender in enumerate(order):
            receiver = order[(place + 1) % W]
            link = inner if sender[0] == receiver[0] else outer
            link[sender] += (W - 1) * size / W / per_machine  # in each step but the last a piece of this channel
    return max(inner.values(), default=0.0), max(outer.values(), default=0.0)


@pytest.mark.parametrize(("machines", "per_machine"), [(1, 8), (8, 1), (3, 4), (64, 8)])
def test_rings_send_what_they_send_when_played(machines, per_machine):
    links = replace(LINKS, per_machine=per_machine, machines=machines)
    inner, outer = played_ring(machines, per_machine, 600.0)
    gather = links.passage(Transfer("gather", 600.0))
    assert gather.inner == pytest.approx(inner)
    assert gather.outer == pytest.approx(outer / 0.5)
    assert gather.total == max(gather.inner, gather.outer) + gather.waits
    reduced = links.passage(Transfer("all_reduce", 600.0))
    assert (reduced.inner, reduced.outer) == pytest.approx((2 * gather.inner, 2 * gather.outer))


def test_what_waits():
    assert LINKS.passage(Transfer("gather", 0.0)).waits == 1000 + 9 * 1 + 2 * 10
    assert LINKS.passage(Transfer("all_reduce", 0.0)).waits == 1000 + 2 * 3 * 1 + 2 * 2 * 10
    assert LINKS.passage(Transfer("all_to_all", 0.0)).waits == 1000 + 10 + 11 * 100
    with pytest.raises(ValueError, match="'broadcast'"):
        LINKS.passage(Transfer("broadcast", 1.0))


def test_an_all_to_all_sends_each_pair_its_part():
    devices = [(machine, d) for machine in range(3) for d in range(4)]
    part = 600.0 / len(devices)
    inner = sum(part for other in devices[1:] if other[0] == 0)
    outer = sum(part for other in devices if other[0] != 0)
    found = LINKS.passage(Transfer("all_to_all", 600.0))
    assert (found.inner, found.outer) == pytest.approx((inner, outer / 0.5))


def test_flop_of_the_towers_are_those_of_the_literature():
    assert costs.tower_flop("image") == pytest.approx(2 * 17.5e9, rel=0.02)  # ViT-B/16: 17.5e9 multiply-adds
    assert costs.tower_seconds(10, 0, 3) == pytest.approx(10 * 3 * 2 * 17.5e9 / (312e12 * 0.45), rel=0.02)
    assert costs.tower_seconds(0, 10, 1) < costs.tower_seconds(10, 0, 1) / 4


def test_the_ways_of_eight_gpus_are_told_apart():
    M, N, D, W = (assumed(name) for name in ("batch", "texts", "width", "devices"))
    (shared, moved), (whole, all_moved), (local, held_moved) = (
        scaling.eight("lorentz", way) for way in scaling.WAYS
    )
    assert shared.flop == 4 * 2 * M * N * D / W
    assert whole.flop == W * shared.flop
    assert local.flop == 1.5 * shared.flop
    assert max(size for _, size in moved) == N * D * 2  # images never move
    assert [size for kind, size in all_moved if kind == "all_reduce"] == [N * D * 2, M * D * 2]
    assert sum(size for _, size in held_moved) == 2 * (M + N) * D * 2
    for link in ("nvlink", "network"):
        links = scaling.machine_links(link)
        times = [
            costs.predict(work, costs.a100()).total + costs.moving(transfers, links)
            for work, transfers in (scaling.eight("lorentz", way) for way in ("shared", "local_loss", "whole"))
        ]
        assert times == sorted(times)
    with pytest.raises(ValueError, match="local_loss"):
        costs.distributed_loss("lorentz", "ring", M, N, 8)


def test_what_is_not_open_clips_does_not_bear_its_name():
    lines = [line for line in scaling.step_table().splitlines() if "matrices held" in line]
    assert [("open_clip" in line) for line in lines] == [f"| {g} |" in lines[0] for g in costs.GEOMETRIES] * 2
    rate = costs.a100(share="library_share").product_flops
    M, N, D, W = (assumed(name) for name in ("batch", "texts", "width", "devices"))
    assert f"| {6 * 2e3 * M * N * D / W / rate:.3g} |" in lines[0]


def test_every_assumption_is_used_and_has_a_source(monkeypatch):
    used = set()

    class Watched(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    monkeypatch.setattr(costs, "ASSUMED", Watched(costs.ASSUMED))
    scaling.step_table()
    cluster_tables.time_table()
    for table in (cluster_tables.largest_table, cluster_tables.ring_table, cluster_tables.check_table):
        table()
    assert used == set(costs.ASSUMED)
    assert all(a.source for a in costs.ASSUMED.values())


def test_supposing_ends_with_its_block():
    with costs.supposing(network=1.0, width=2):
        assert (assumed("network"), assumed("width")) == (1, 2)
    assert assumed("width") == 512
    assert "card" in costs.ASSUMED["network"].source


class Processes:
    """torch.distributed of four processes, alike but for their texts; keeps what it is asked to move."""

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self):
        self.moved = []

    is_available = is_initialized = staticmethod(lambda: True)
    get_world_size = staticmethod(lambda group: 4)
    get_rank = staticmethod(lambda group: 0)

    def all_gather_into_tensor(self, out, x, group):
        sizes = x.ndim == 1  # a number of each process: its time is that of a message, whatever it holds
        self.moved.append(("gather", 0 if sizes else out.nbytes))
        for process, part in enumerate(out.chunk(4)):
            part.copy_(x if sizes or x.is_floating_point() else x + 100 * process * torch.tensor([0, 1]))

    def all_reduce(self, x, op=None, group=None):
        self.moved.append(("all_reduce", x.nbytes))

    def all_to_all_single(self, out, x, out_sizes, in_sizes, group):
        assert out_sizes == in_sizes == [len(x) // 4] * 4
        self.moved.append(("all_to_all", x.nbytes))
        out.copy_(x)


def test_the_loss_moves_what_the_model_says(monkeypatch):
    """28 texts of 16 numbers in fp32 on four processes: every collective of LevelContrastiveLoss, in its order."""
    processes = Processes()
    monkeypatch.setattr(distributed, "dist", processes)
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 16, generator=draw, requires_grad=True) for n in (5, 7))
    taxa = torch.arange(7).repeat(5, 1)
    ranks = torch.arange(7)
    LevelContrastiveLoss()(image, text, taxa, ranks, ranks, torch.tensor(10.0), 1.0).loss.backward()
    with costs.supposing(width=16, element_bytes=4):
        expected = costs.shared_transfers(28)
    of_ranks = {"counts": 7 * 4, "sums": 7 * 4}
    assert processes.moved == [(kind, size + of_ranks.get(name, 0)) for name, (kind, size) in expected.items()]


# -- texts


def test_expected_texts_are_those_of_a_drawn_batch():
    images = 1 << 15
    taxa = problems._lineages(images, torch.Generator().manual_seed(7))
    drawn = [len(taxa[:, rank].unique()) for rank in range(taxa.shape[1])]
    expected = problems.expected_texts(images)
    assert expected == pytest.approx(drawn, rel=0.03, abs=2)
    assert sum(expected) == pytest.approx(sum(drawn), rel=0.01)


def test_texts_grow_more_slowly_than_images_and_end_with_the_tree():
    assert problems.expected_texts(1) == pytest.approx([1] * 7)
    texts = [cluster.texts_of(1 << k) for k in range(10, 27)]
    growth = [b / a for a, b in pairwise(texts)]
    assert all(1 < g < 1.7 for g in growth)
    assert 0.99 * 489_263 < texts[-1] < sum(problems.TAXA_OF_RANK) == 489_263


# -- time past one machine


def test_one_row_of_the_time_table_by_hand():
    """A million images on 64 machines: 2,048 images a GPU, 186,171 texts of 1 KiB."""
    N = 186_171
    row = cells(cluster_tables.time_table(), "1,048,576", "512")
    assert row[2:4] == ["2,048", f"{N:,}"]
    logits = 2048 * N
    products = 4 * 2 * logits * 512 / (0.6 * 312e12)
    sm = 108 * 1.41e9
    epilogue = 2 * 4 * logits / (16 * sm) + 2 * 25 * logits / (64 * sm) + 6 * logits / (0.85 * 2.039e12)
    compute = products + epilogue / 2  # the epilogue is the smaller
    hops = 8.4e-6 + (511 - 63) * 3.4e-6 + 63 * 9.6e-6
    card = 0.75 * 25e9
    gather = [511 / 512 * N * size / 8 / card + hops for size in (0, 16, 1024)]
    counts, *columns = [
        2 * 511 / 512 * N * size / 8 / card + 8.4e-6 + 14 * 3.4e-6 + 12 * 9.6e-6 for size in (4, 4, 8)
    ]
    gather.append(counts)
    back = 504 / 512 * N * 1024 / card + 8.4e-6 + 9.6e-6 + 511 * 2e-6
    towers = 3 * (2048 * 35.1e9 + N / 512 * 5.96e9) / (0.45 * 312e12)
    parameters = 2 * 511 / 512 * 300e6 / 8 / card + 8.4e-6 + 14 * 3.4e-6 + 12 * 9.6e-6
    loss = compute + sum(gather) + sum(columns) + back
    by_hand = [1e3 * x for x in (compute, sum(gather), sum(columns), back, loss, towers, parameters)]
    found = [float(cell.strip("*").replace(",", "")) for cell in row[4:11]]
    assert found == pytest.approx(by_hand, rel=0.01)
    assert float(row[11].strip("%")) == pytest.approx(100 * loss / towers, rel=0.01)


def test_a_return_by_machines_sums_inside_first():
    """64 GPUs: 7/8 of 1 KiB a text on NVLink, then 7/8 of an eighth of 2 KiB by each card."""
    N, step = cluster.texts_of(1 << 20), Step(1 << 20, 64)
    inside = 7 / 8 * N * 1024 / (0.75 * 300e9) + 8.4e-6 + 3.4e-6 + 7 * 2e-6
    between = 7 / 8 * N / 8 * 2048 / (0.75 * 25e9) + 8.4e-6 + 9.6e-6 + 7 * 2e-6
    assert cluster.return_by_machines(step) == pytest.approx(inside + between)
    alone = Step(1 << 20, 8)
    assert cluster.return_by_machines(alone) == pytest.approx(cluster.passages(alone)["return"].total)


def test_what_is_hidden_is_what_has_something_to_hide_behind():
    for step in cluster.PLAN:
        o, moved = cluster.overlap(step), cluster.passages(step)
        saved = sum(
            min(a, b)
            for a, b in (
                (o.texts, o.image_forward),
                (o.gradient, o.image_backward),
                (o.parameters, o.last_backward),
            )
        )
        assert o.plain - o.hidden == pytest.approx(saved)
        assert o.hidden > cluster.loss_seconds(step) + moved["maxima"].total + moved["sums"].total
    with costs.supposing(network=1e6):  # a network so slow that nothing hides it all
        o = cluster.overlap(LARGE)
        assert o.texts > o.image_forward
        assert o.plain - o.hidden == pytest.approx(o.image_forward + o.image_backward + o.last_backward)


# -- the ring


def played_passes(W, compute, move):
    """A ring's seconds, block by block: two buffers, the next block arriving while this one is at work."""
    arrived, done, before = 0.0, 0.0, 0.0  # done with the last block, and with the one before it
    for k in range(W):
        if k:
            arrived = max(arrived, before) + move[0]
        before, done = done, max(done, arrived) + compute[0]
    forward = done
    arrived = done = before = gradient = 0.0
    for k in range(W):
        if k:
            arrived = max(arrived, before) + move[1]
            gradient += move[1]
        before, done = done, max(done, arrived) + compute[1]
        gradient = max(gradient, done)  # ours is added, and it goes on
    return forward + gradient + move[1]


@pytest.mark.parametrize("step", cluster.PLAN, ids=lambda step: f"{step.batch}-{step.devices}")
def test_a_ring_takes_what_it_takes_when_played(step):
    with costs.supposing(round=0.0):
        ring = cluster.ring(step)
    played = played_passes(step.devices, ring.compute, ring.move)
    assert played <= ring.total * (1 + 1e-9)
    assert played == pytest.approx(ring.total, rel=0.02)


def test_a_round_by_hand():
    """131,072 images on 64 GPUs: 2,048 images against blocks of a 64th of 64,552 texts."""
    block = 64_552 / 64
    ring = cluster.ring(Step(1 << 17, 64))
    products = 2 * 2048 * block * 512 / (0.6 * 312e12)
    assert products < ring.compute[0] < 1.5 * products
    assert 3 * products < ring.compute[1] < 4 * products
    by_card = [(block * size / (0.75 * 25e9) + 9.6e-6) / 8 for size in (512 * 2 + 16, 512 * 6 + 16)]
    by_nvlink = [block * size / (0.75 * 300e9) + 3.4e-6 for size in (512 * 2 + 16, 512 * 6 + 16)]
    assert ring.move == pytest.approx([max(pair) for pair in zip(by_card, by_nvlink, strict=True)], rel=1e-4)


def test_a_ring_of_large_rounds_computes_what_all_gather_does():
    step = Step(1 << 20, 64)
    assert cluster.ring(step).total == pytest.approx(cluster.loss_seconds(step), rel=0.01)


@pytest.mark.parametrize("devices", cluster.DEVICES)
@pytest.mark.parametrize("backward", [False, True])
def test_from_so_many_images_on_a_block_hides(devices, backward):
    images = cluster.least_images(devices, backward)
    with costs.supposing(nvlink_hop=0.0, network_hop=0.0):
        for factor, hides in ((1.01, True), (0.99, False)):
            ring = cluster.ring(Step(round(images * factor) * devices, devices))
            assert (ring.compute[backward] > ring.move[backward]) == hides


# -- memory


def test_one_row_of_the_memory_table_by_hand():
    """The published recipe with 29,339 texts of 512 numbers; workspaces of the kernels: 64 MiB and row sums."""
    N, mib = 29_339, 1 << 20
    texts, gradient = N * 512 * 2, N * 512 * 6
    row_sums = 4096 * 2 * 4 * (N / 1024 + 7)
    ours = 2 * texts + gradient + N * 32 + 64 * mib + row_sums
    ring = N / 8 * (512 * (2 + 2 + 2 + 4 + 4) + 2 * 32) + 64 * mib + 4096 * 2 * 4 * (N / 8 / 1024 + 7)
    held = 2 * (32768 + N) * 512 * 2 + 6 * 2 * 4096 * N
    row = cells(cluster_tables.memory_table(), "32,768", "8")
    found = [float(cell.strip("*").replace(",", "")) for cell in row[2:]]
    by_hand = [texts, texts, gradient, N * 32, 64 * mib + row_sums, ours, ring, held]
    assert found == pytest.approx([x / mib for x in by_hand], abs=0.51)


def test_activations_of_one_image_by_hand():
    layer = 197 * 768
    assert cluster.activations("image", 1, False) == 12 * 34 * layer
    assert cluster.activations("image", 1, True) == (12 * 2 + 34) * layer


@pytest.mark.parametrize("devices", cluster.DEVICES)
@pytest.mark.parametrize("fill", cluster.FILLS, ids=lambda fill: fill.name)
def test_the_largest_batch_fits_and_a_larger_does_not(fill, devices):
    images, what = cluster.largest(fill, devices)

    def room(n):
        step = Step(n * devices, devices)
        on_host = 2 * n * 8 * 3 * 224 * 224 * 4 if fill.cached else 0
        return min(72e9 - sum(fill.parts(step).values()), 0.9e12 - on_host)

    assert room(images) >= 0 > room(images + 128)
    assert what in {*fill.parts(SMALL), "the host's memory"}


def test_the_published_recipe_fits_as_it_is_configured():
    parts = {fill.name: sum(fill.parts(SMALL).values()) for fill in cluster.FILLS}
    assert parts["one pass"] > 80e9 > parts["one pass, layers checkpointed"]
    pixels, texts = 4096 * 602_112, 29_339 / 8
    checkpointed = (4096 * 197 * 768 + texts * 77 * 512) * (12 * 2 + 34)
    known = pixels + checkpointed + 150e6 * (4 + 12 / 8)
    assert known < parts["one pass, layers checkpointed"] < known + 0.3e9


def test_gradient_caching_by_hand():
    """The published recipe: activations of 256 images and texts, features and gradients of all, 16 bit."""
    caching = next(fill for fill in cluster.FILLS if fill.name == "gradient caching")
    N, found = cluster.texts_of(1 << 15), caching.parts(SMALL)
    assert found["activations"] == 256 * 12 * 34 * (197 * 768 + 77 * 512)
    assert found["features"] == pytest.approx((4096 + N / 8) * 512 * 4)
    assert found["pixels"] == 256 * 3 * 224 * 224 * 4
    assert caching.host_bytes(SMALL) == 2 * 4096 * 3 * 224 * 224 * 4
    of_images = found["loss"] - sum(cluster.gathered_memory(4096, N).values())
    assert of_images == pytest.approx(4096 * 512 * (2 + 4 + 2))  # unit copies, sums in fp32, gradient


# -- the document


def test_what_the_document_says_in_words():
    steps = [(step, cluster.overlap(step)) for step in cluster.PLAN]
    for step, o in steps:
        moved = sum(passage.total for passage in cluster.passages(step).values())
        assert moved < 0.002 * o.plain or o.plain < 2
        assert sum(cluster.gathered_memory(step.local, step.texts).values()) < 1.23e9
        if step.devices == 8:
            assert 1 - o.hidden / o.plain < 0.001
        else:
            times = cluster.passages(step)
            assert 6.9 < times["return"].outer / times["texts"].outer < 8.1
            assert 0.2 < cluster.return_by_machines(step) / times["return"].total < 0.42
        assert o.texts < o.image_forward
        assert o.gradient < o.image_backward
        assert o.parameters < o.last_backward
    gains = [cluster.ring_gains(Step(1 << k, devices)) for k in range(13, 25) for devices in cluster.DEVICES]
    assert max(gain for gain, _ in gains) < 0.007
    assert max(gain for _, gain in gains) < 0.00015
    assert [line[-4:-2] for line in cluster_tables.check_table().splitlines()[2:]] == ["29", "39", "36"]
    doubts = [line.split("|") for line in cluster_tables.doubt_table().splitlines()[2:]]
    assert max(float(line[3].strip(" %")) for line in doubts) <= 0.02
    a_text = sum(x for name, x in cluster.gathered_memory(0, 1).items() if name != "workspace")
    assert a_text == 10 * 512 + 32
    assert cluster.ring_memory(0, 1) - cluster.workspace(0, 1) == 14 * 512 + 64
    assert 1.5e6 < 8e9 / a_text < 1.6e6  # a tenth of the memory
    assert 3 * 489_263 < 1.5e6


def test_the_document_holds_what_the_model_says():
    written = scaling.DOCUMENT.read_text()
    for name, body in scaling.tables(None).items():
        if name not in ("fits", "cpu"):  # those are measured
            assert f"<!-- {name} -->\n\n{body}\n\n<!-- end of {name} -->" in written, f"{name}: scaling.py --write"


def test_small_times_are_not_shown_finer_than_they_are_known():
    shown = [cluster_tables._ms(x) for x in (1e-6, 2.345e-4, 0.01234, 0.2345, 12.0)]
    assert shown == ["< 0.01", "0.23", "12.3", "234", "12,000"]
    assert math.isclose(float(cluster_tables._mib(3.14159 * (1 << 20))), 3.1)
