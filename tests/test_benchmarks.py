"""The benchmarks' peers compute what they claim, and their scripts run: what a GPU's figures rest on."""

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bioclip_hc.kernels.configs import TABLE, Config, Tile

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
bench_kernels, compare_kernels, machine, peers, problems, timing, tune = map(
    importlib.import_module,
    ("bench_kernels", "compare_kernels", "machine", "peers", "problems", "timing", "tune"),
)
bench_loss, bench_maps, bench_topk = map(importlib.import_module, ("bench_loss", "bench_maps", "bench_topk"))
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OBJECTIVES = [(mode, geometry) for mode in problems.MODES for geometry in problems.GEOMETRIES]
PLAIN = [  # ways that also run in float64, without kernels of their own
    (way, mode, geometry)
    for way in dict.fromkeys(peers.WAYS + peers.CPU_WAYS)
    for mode, geometry in OBJECTIVES
    if way.name not in (peers.OURS, "inf-cl", "liger") and way.applies(mode, geometry)
]


# -- peers


def value_and_gradients(p, loss):
    value = loss(p)
    return [value.detach(), *torch.autograd.grad(value, p.inputs)]


def relative_errors(p, loss):
    """Of the value and of every gradient, by norm, to the reference's."""
    exact = value_and_gradients(p, lambda p: peers.level_loss(p, "reference"))
    return [float((x - y).norm() / y.norm()) for x, y in zip(value_and_gradients(p, loss), exact, strict=True)]


@pytest.mark.parametrize(("way", "mode", "geometry"), PLAIN, ids=lambda value: getattr(value, "name", value))
def test_a_peer_computes_the_same_loss(monkeypatch, way, mode, geometry):
    if way.name == "open_clip":
        pytest.importorskip("open_clip")
    # what is traced is tested here, not the code that inductor makes of it
    for name in ("_compiled_eager", "_compiled_for_all_sizes"):
        monkeypatch.setattr(peers, name, lambda: torch.compile(peers.eager, backend="eager"))
    monkeypatch.setattr(peers._Blocks, "SIDE", 16)  # several blocks, the last one smaller
    p = problems.make_problem(mode, geometry, 40, 16, torch.float64, DEVICE)
    assert max(relative_errors(p, way.loss)) < 1e-9


@pytest.mark.parametrize(
    ("module", "loss", "able", "tolerance"),
    [
        ("liger_kernel", peers.liger, GPU or INTERPRETED, 1e-4),
        ("inf_cl", peers.inf_cl, GPU, 1e-2),  # its products are TF32's
    ],
)
def test_a_packaged_peer_computes_the_same_loss(module, loss, able, tolerance):
    pytest.importorskip(module)
    if not able:
        pytest.skip("its kernels need a GPU")
    p = problems.make_problem("dense", "euclidean", 128, 64, torch.float32, DEVICE)
    assert max(relative_errors(p, loss)) < tolerance


def test_the_wrapper_of_inf_cl_takes_both_directions(monkeypatch):
    def cal_inf_loss(q, k, labels=None, scale=None, head_dim=256):  # its signature; its mean over the rows of q
        assert q.shape[1] % head_dim == 0
        assert scale is None, "asks for a process group in the backward pass"
        return torch.nn.functional.cross_entropy(q @ k.T, torch.arange(len(q), device=q.device))

    monkeypatch.setitem(sys.modules, "inf_cl", type(sys)("inf_cl"))
    sys.modules["inf_cl"].cal_inf_loss = cal_inf_loss
    p = problems.make_problem("dense", "euclidean", 40, 24, torch.float64, DEVICE)
    assert max(relative_errors(p, peers.inf_cl)) < 1e-9


# -- the CPU suites

CASES = bench_loss.cases()


@pytest.mark.parametrize(("mode", "geometry"), [(m, g) for m, g in OBJECTIVES if m in bench_loss.MODES])
@pytest.mark.parametrize("way", bench_loss.OWN_WAYS)
def test_our_ways_compute_the_loss(way, mode, geometry):
    dtype, tolerance = (torch.bfloat16, 2e-2) if way.endswith("bf16") else (torch.float32, 1e-4)
    p = problems.make_problem(mode, geometry, 70, 32, dtype, torch.device("cpu"))
    assert max(relative_errors(p, bench_loss.OWN_WAYS[way])) < tolerance


def test_every_problem_of_the_loss_has_ours_its_base_and_sizes_to_32k():
    ways = {}
    for case in CASES:
        ways.setdefault(case.group, []).append(case)
    assert {case.n for case in CASES} == {1024, 2048, 4096, 8192, 16384, 32768}
    fp32 = {group: cases for group, cases in ways.items() if not group.endswith(", bf16")}
    assert len(fp32) == 6 * 2 * 2 * 2
    assert all(f"{group}, bf16" in ways for group in fp32)
    assert {case.dtype for cases in fp32.values() for case in cases} == {torch.float32}
    for cases in fp32.values():
        names = [case.way for case in cases]
        assert len(set(names)) == len(names)
        assert names.count(peers.OURS) == names.count(bench_loss.BASES[cases[0].mode]) == 1


def test_a_way_that_finds_another_loss_fails(monkeypatch):
    monkeypatch.setattr(bench_loss, "_first", {})
    one, other = (bench_loss.Case(64, "dense", "lorentz", "forward", way) for way in (peers.OURS, "meru"))
    bench_loss.agree(one, 2.0)
    bench_loss.agree(other, 2.0001)
    bench_loss.agree(one._replace(way=f"{peers.OURS}, bf16"), 2.03)
    bench_loss.agree(other._replace(n=128), 3.0)
    for wrong in (2.001, math.nan):
        with pytest.raises(AssertionError, match=f"that of {peers.OURS} 2"):
            bench_loss.agree(other, wrong)


def test_every_way_is_warm_up_to_8192():
    for case in CASES:
        if case.n <= 8192 or case.way == "torch.compile":
            assert bench_loss.rounds(case) > 0


def test_ours_runs_everywhere_and_what_is_left_out_says_why(monkeypatch):
    monkeypatch.setattr(bench_loss, "MEMORY_GIB", 16.0)
    reasons = {case: bench_loss.why_not(case) for case in CASES}
    assert all(reason is None for case, reason in reasons.items() if case.way == peers.OURS)
    assert all("NVIDIA GPU" in reason for case, reason in reasons.items() if case.way == "inf-cl")
    assert all(reason is None for case, reason in reasons.items() if case.n <= 4096 and case.way != "inf-cl")

    def eager(n, steps):
        return reasons[bench_loss.Case(n, "dense", "euclidean", steps, "torch eager")]

    assert eager(32768, "forward") is None  # 12 GiB
    assert eager(16384, "forward + backward") is None
    assert eager(32768, "forward + backward") is not None
    meru = bench_loss.Case(32768, "dense", "lorentz", "forward", "meru")
    assert reasons[meru] == "would hold 24 GiB at once (16 allowed)"


@pytest.mark.parametrize("tile", [(16, 16), (24, 64), (64, 24)])
def test_the_floor_does_the_products_of_the_loss(monkeypatch, tile):
    x, y = torch.randn(40, 8), torch.randn(33, 8)
    made = []
    grads = []
    real = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda t: grads.append(real(t)) or grads[-1])
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: made.append(a.shape[0] * b.shape[1]) or mm(a, b, out=out))
    bench_loss.multiply([(x, y)], 4, tile)()
    s = x @ y.T
    torch.testing.assert_close(grads[0], s @ y)
    torch.testing.assert_close(grads[1], s.T @ x)
    assert sum(made) == 2 * 40 * 33
    made.clear()
    bench_loss.multiply([(x, y)], 1, tile)()
    assert sum(made) == 40 * 33


def test_the_floor_of_seven_ranks_meets_what_the_objective_needs(monkeypatch):
    monkeypatch.setattr(bench_loss, "D", 8)
    bench_loss.problem.cache_clear()
    blocks = bench_loss.products("sorted", 70)
    bench_loss.problem.cache_clear()
    assert [(len(x), len(y)) for x, y in blocks] == [(10, 10)] * 7


@pytest.mark.parametrize("op", ["exp_map0", "log_map0", "lorentz_inner"])
@pytest.mark.parametrize("way", ["torch", "geoopt", peers.OURS])
def test_a_way_of_a_map_computes_the_reference(op, way):
    """Values and gradients in float64; geoopt in its own coordinates, at a curvature that is not 1."""
    if way == "geoopt":
        pytest.importorskip("geoopt")
    curv = torch.tensor(bench_maps.CURVATURE, dtype=torch.float64).requires_grad_()
    rows = (bench_maps.points(6, op), *([bench_maps.points(4, op)] if op == "lorentz_inner" else []))
    inputs = [x[:, :16].double().requires_grad_() for x in rows]
    found, plain = (bench_maps.way_of(op, name) for name in (way, "torch"))
    got = found.ours(found.work(*found.inputs(*inputs, curv)))
    exact = REFERENCE[op](*inputs, curv)
    torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)  # geoopt's acosh
    gradient = torch.randn_like(exact)
    mine, true = (torch.autograd.grad(x, [*inputs, curv], gradient) for x in (got, exact))
    torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-5)
    assert plain.work is bench_maps.PLAIN[op]


REFERENCE = {name: getattr(bench_maps, name) for name in ("exp_map0", "log_map0", "lorentz_inner")}
REFERENCE = {name: partial(function, backend="reference") for name, function in REFERENCE.items()}


def test_a_wrong_map_is_noticed():
    wrong = bench_maps.Way(lambda *inputs: inputs, lambda v, c: 1.001 * bench_maps.meru_exp_map0(v, c))
    with pytest.raises(AssertionError, match="differs from float64"):
        bench_maps.checked(wrong, "exp_map0", (bench_maps.points(8, "exp_map0"), torch.tensor(1.3)))


@pytest.mark.parametrize("geometry", problems.GEOMETRIES)
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("k", [1, 5])
def test_dense_topk_finds_what_the_reference_finds(monkeypatch, geometry, lists, k):
    monkeypatch.setattr(bench_topk, "BLOCK", 16)
    s = bench_topk.search(geometry, 300, 40, 16, 4)
    s = s._replace(image=s.image.double(), text=s.text.double())
    score, index = bench_topk.dense(s, k, lists)
    exact_score, exact_index = bench_topk.rank_topk(
        s.image, s.text, s.text_rank, bench_topk.LOGIT_SCALE, 1.0, geometry=geometry, k=k, ranks=bench_topk.RANKS,
        space="unit" if geometry == "euclidean" else "tangent", backend="reference",
        candidates=(s.indptr, s.indices) if lists else None,
    )  # fmt: skip
    torch.testing.assert_close(score, exact_score, rtol=1e-8, atol=1e-6)
    assert torch.equal(index, exact_index)
    if lists:
        score, index = bench_topk.gathered(s, k)
        torch.testing.assert_close(score, exact_score, rtol=1e-6, atol=1e-6)
        assert torch.equal(index, exact_index)
    single = s._replace(image=s.image.float(), text=s.text.float())
    score, index = bench_topk.ours(single, k, lists)
    bench_topk.agree(single, lists, score, index)
    wrong = index.clone()
    wrong[0, -1, 0] = int((index[0, -1, 0] + 1) if index[0, -1, 0] + 1 < 300 else index[0, -1, 0] - 1)
    for changed in ((score + 0.1, index), (score, wrong), (score, torch.full_like(index, -1))):
        with pytest.raises(AssertionError):
            bench_topk.agree(single, lists, *changed)


def test_lists_have_a_base_that_does_not_meet_all_texts():
    for geometry, n, k, lists, way in bench_topk.cases():
        ways = [c[-1] for c in bench_topk.cases() if c[:4] == (geometry, n, k, lists)]
        assert bench_topk.base_of(lists) in ways
        assert not (lists and way == bench_topk.PRODUCTS)


def test_a_search_is_what_it_says():
    s = bench_topk.search("euclidean", 1000, 30, 8)
    sizes = s.text_rank.bincount()
    assert int(sizes.sum()) == 1000
    assert all(1.8 < b / a < 2.4 for a, b in zip(sizes.tolist(), sizes.tolist()[1:], strict=False))
    for i in range(30):
        own = s.indices[s.indptr[i] : s.indptr[i + 1]]
        assert len(own.unique()) == len(own)
        assert s.text_rank[own].bincount().tolist() == sizes.clamp_max(bench_topk.LIST).tolist()


# -- problems


@pytest.mark.parametrize(("mode", "geometry"), OBJECTIVES)
def test_a_problem_is_what_it_says(mode, geometry):
    p = problems.make_problem(mode, geometry, 70, 8, torch.float32, DEVICE)
    known = p.image_taxa >= 0
    ranks = torch.arange(p.image_taxa.shape[1], device=DEVICE).expand_as(p.own)
    assert torch.equal(p.own >= 0, known)
    assert torch.equal(p.text_taxon[p.own[known]], p.image_taxa[known])
    assert torch.equal(p.text_rank[p.own[known]], ranks[known])
    assert len(set(zip(p.text_rank.tolist(), p.text_taxon.tolist(), strict=True))) == len(p.text)  # each text once
    assert p.pairs == {"dense": 70 * 70, "sorted": 7 * 10 * 10, "all_ranks": 70 * len(p.text)}[mode]
    norm = p.image.detach().norm(dim=1)
    low, high = (1, 1) if geometry == "euclidean" else (0.5, 1.5)
    assert low - 1e-6 <= norm.min() <= norm.max() <= high + 1e-6


def test_a_batch_of_all_ranks_has_about_as_many_taxa_as_images():
    p = problems.make_problem("all_ranks", "euclidean", 32768, 2, torch.float32, torch.device("cpu"))
    assert 27_000 < len(p.text) < 33_000
    sizes = [len(texts) for _, texts in p.ranks]
    assert sizes == sorted(sizes)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of"):
        problems.make_problem("sparse", "lorentz", 8, 8, torch.float32, DEVICE)


# -- a run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A smoke run by command, then taken up again in this process for other objectives; its file."""
    path = tmp_path_factory.mktemp("smoke") / "smoke.json"
    command = [sys.executable, str(BENCHMARKS / "bench_kernels.py"), "--smoke", "--output", str(path)]
    command += ["--sizes", "8", "--modes", "dense", "--geometries", "lorentz", "--dtypes", "fp16", "--map-sizes"]
    environment = os.environ | {"TRITON_INTERPRET": "0" if GPU else "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    first = json.loads(path.read_text())["rows"]
    torch_only = [way.name for way in peers.WAYS if way.name.startswith("torch ")]
    arguments = [
        "--smoke",
        "--resume",
        "--output",
        str(path),
        "--dtypes",
        "fp16",
        "--map-sizes",
        "--sizes",
        "8",
        "24",
    ]
    assert bench_kernels.main([*arguments, "--ways", *torch_only]) == 0
    assert json.loads(path.read_text())["rows"][: len(first)] == first
    return path


def test_a_smoke_run_measures_every_step(smoke):
    content = json.loads(smoke.read_text())
    assert content["smoke"]
    assert {p["product"] for p in content["products"] if p["ms"]} == set(bench_kernels.PRODUCTS)
    rows = content["rows"]
    cells = [tuple(row[k] for k in ("mode", "geometry", "images", "way", "steps")) for row in rows]
    assert len(set(cells)) == len(cells), "a resumed run measures nothing twice"
    ours = [row for row in rows if row["way"] == peers.OURS]
    assert {row["steps"] for row in ours} >= {"forward", "backward", "forward_backward"}
    assert all(row["ms"]["p50"] > 0 for row in ours)
    assert next(row for row in ours if row["steps"] == "forward_backward")["repeatable"]
    assert {(mode, geometry) for mode, geometry, *_ in cells} == set(OBJECTIVES)


def test_ways_of_one_problem_find_one_value(smoke):
    rows = [row for row in json.loads(smoke.read_text())["rows"] if "value" in row]
    values_of = {}
    for row in rows:
        values_of.setdefault((row["mode"], row["geometry"], row["images"]), []).append(row["value"])
    assert all(max(values) - min(values) < 1e-3 + 0.01 * max(values) for values in values_of.values())
    assert any(len(values) > 2 for values in values_of.values())


def test_the_small_operations_run(tmp_path):
    path = tmp_path / "maps.json"
    options = bench_kernels.parse(["--smoke", "--output", str(path), "--map-sizes", "8", "--dtypes", "tf32"])
    results = bench_kernels.Results(path, smoke=True, resume=False)
    bench_kernels.bench_maps(options, results, DEVICE)
    values = {
        (row["op"], row["way"]): row.get("value") for row in results.content["rows"] if row["steps"] == "forward"
    }
    for op in ("exp_map0", "lorentz_inner", "rank_topk"):
        assert values[op, "bioclip_hc"] == pytest.approx(values[op, "torch"], rel=1e-3)


@pytest.mark.skipif(GPU, reason="there is a GPU")
@pytest.mark.parametrize("script", [bench_kernels, tune, compare_kernels])
def test_without_a_gpu_a_full_run_says_so_and_fails(script):
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU: no CUDA device"):
        script.main([])


@pytest.mark.parametrize("script", [bench_kernels, tune])
def test_a_smoke_run_is_kept_out_of_the_results(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--smoke", "--output", str(machine.RESULTS / "kernels.json")])
    assert "measures nothing" in capsys.readouterr().err


def test_a_failing_peer_becomes_a_row_that_says_so():
    def failing(error):
        def work():
            raise error

        return bench_kernels.attempted(work)["note"]

    assert failing(ModuleNotFoundError("No module named 'inf_cl'")) == "not installed: No module named 'inf_cl'"
    assert failing(torch.OutOfMemoryError("tried to allocate")) == "out of memory"
    assert failing(RuntimeError("first\nsecond")) == "RuntimeError: first"


def test_a_file_of_another_machine_is_not_continued(smoke, tmp_path):
    content = json.loads(smoke.read_text())
    content["card"]["gpu"] = "another"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another gpu"):
        bench_kernels.Results(path, smoke=True, resume=True)


def test_a_measurement_counts_its_calls():
    calls = []
    spread = timing.measure(lambda: calls.append(0), budget_ms=1e-9)
    assert len(calls) == 2 + 1 + spread.repeats == 2 + 1 + timing.LEAST
    assert spread.p20 <= spread.p50 <= spread.p80
    calls.clear()
    assert timing.measure(lambda: calls.append(0), budget_ms=0).repeats == len(calls) == 1


# -- tables and plots

CARD = {"gpu": "NVIDIA Made-Up 100", "torch": "2.11", "triton": "3.6", "date": "2026-01-01"}


def made_up():
    """A results file of one GPU: our dense step takes 10 ms, 2.5 of them forward, at 440 TFLOP/s of cuBLAS's."""
    flops = 2 * 32768**2 * 512

    def row(way, steps, mode, geometry, ms, images=32768, **more):
        timed = ms and {"p20": ms * 0.9, "p50": ms, "p80": ms * 1.1, "repeats": 9}
        cell = {"op": "level_infonce", "mode": mode, "geometry": geometry, "dtype": "fp16", "images": images}
        work = (flops if mode == "dense" else flops // 7) * images**2 // 32768**2
        return cell | {"way": way, "steps": steps, "texts": images, "product_flops": work, "ms": timed} | more

    names = ["logits", "image_gradient", "text_gradient", "image_gradient_panel", "text_gradient_panel"]
    return {
        "card": CARD,
        "smoke": False,
        "products": [
            {"product": name, "images": 32768, "dtype": "fp16", "ms": {"p50": 1.0}, "tflops": flops / 2e9}
            for name in names  # 2 ms each
        ],
        "rows": [
            row("bioclip_hc", "forward", "dense", "euclidean", 2.5, value=1.25),
            row("bioclip_hc", "backward", "dense", "euclidean", 12.0),
            row("bioclip_hc", "forward_backward", "dense", "euclidean", 10.0, peak_mib=256.0, repeatable=True),
            row(
                "bioclip_hc",
                "forward_backward",
                "dense",
                "euclidean",
                1.0,
                images=8192,
                peak_mib=1e6,
                repeatable=False,
            ),
            row("bioclip_hc", "forward_backward", "sorted", "euclidean", 1.5, peak_mib=64.0, repeatable=True),
            row("open_clip", "forward_backward", "dense", "euclidean", 20.0, peak_mib=9000.0),
            row("torch masked", "forward_backward", "sorted", "euclidean", 9.0, peak_mib=9000.0),
            row("inf-cl", "forward_backward", "dense", "euclidean", None, note="out of memory"),
        ],
    }


def test_targets_are_judged_by_what_was_measured():
    found = {t.name: t for t in compare_kernels.targets(compare_kernels.Measurements(made_up()))}

    def verdict(name):
        return found[name].shown, found[name].verdict

    assert verdict("forward, of cuBLAS's rate (euclidean, fp16)") == ("80%", "met")  # 2 ms of 2.5
    assert verdict("backward, of cuBLAS's rates at its shapes (euclidean, fp16)") == ("50%", "missed")  # 6 of 12
    assert verdict("forward, of cuBLAS's rate (lorentz, fp16)") == ("", "not measured")
    assert verdict("dense step (an H100's; euclidean, fp16)") == ("10.00 ms", "missed")
    assert verdict("rank-sorted step (an H100's; euclidean, fp16)") == ("1.50 ms", "met")
    assert verdict("dense: open_clip, over ours (fp16)") == ("2.0x", "met")
    assert verdict("dense: inf-cl, over ours (fp16)") == ("", "not measured")
    assert verdict("rank-sorted: dense with a mask, open_clip's way, over ours (fp16)") == ("6.0x", "missed")
    assert verdict("memory beyond inputs and gradients, the largest") == ("0.25 GiB", "met")
    assert verdict("gradients bitwise repeatable, of all steps") == ("67%", "missed")


def test_the_report_shows_every_way_and_why_one_is_missing():
    report = compare_kernels.report(made_up(), sizes=[32768])
    line = next(line for line in report.splitlines() if "| open_clip |" in line)
    assert "| 20.000 | 2.00x |" in line
    assert "out of memory" in next(line for line in report.splitlines() if "| inf-cl |" in line)
    assert "| 8192 |" not in report
    assert "smoke" not in report
    assert "| 8192 |" in compare_kernels.report(made_up())
    assert "mean nothing" in compare_kernels.report(made_up() | {"smoke": True})


def test_plots_are_drawn(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("plot")
    ratio = plot.FIGURES["ratio"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in plot.draw(made_up(), *ratio).axes[0].lines}
    assert drawn == {"bioclip_hc": [[8192, 1], [32768, 1]], "open_clip": [[32768, 2]]}
    rows = made_up()["rows"]
    values = {name: value(rows[5], rows[2]) for name, (_, value) in plot.FIGURES.items()}
    assert values == {"time": 20.0, "ratio": 2.0, "memory": 9000.0}

    monkeypatch.setattr(plot, "FIGURES", {"ratio": ratio})  # a second each
    path = tmp_path / "kernels-made-up.json"
    path.write_text(json.dumps(made_up()))
    assert [p.name for p in plot.draw_all(path)] == ["kernels-made-up-ratio.png", "kernels-made-up-ratio.svg"]
    assert (tmp_path / "kernels-made-up-ratio.png").read_bytes().startswith(b"\x89PNG")
    assert "open_clip" in (tmp_path / "kernels-made-up-ratio.svg").read_text()


def test_results_are_named_after_the_gpu():
    assert machine.results_path("NVIDIA H100 80GB HBM3").name == "kernels-nvidia-h100-80gb-hbm3.json"


# -- the tuner


@pytest.mark.parametrize("precision", tune.PRECISIONS)
@pytest.mark.parametrize("kernel", ["forward", "backward", "product", "chunk"])
def test_candidates_differ_from_the_table_in_one_kernel(kernel, precision):
    base = TABLE[90, precision, "lorentz"]
    configs = list(tune.candidates(kernel, precision, base))
    assert configs[0] == base
    assert 4 < len(configs) == len(set(configs)) < 30
    for config in configs:
        assert replace(config, **{kernel: getattr(base, kernel)}) == base
        assert config.backward.rows % config.product.depth == config.backward.cols % config.product.depth == 0
        assert 512 % config.forward.depth == 512 % config.backward.depth == 512 % config.product.cols == 0


def test_the_tuner_leaves_out_what_fails_spills_or_is_wrong(monkeypatch):
    base = TABLE[90, "16", "lorentz"]
    right = torch.ones(3)
    spills = {}

    def work(config):
        tile = config.forward
        spills["now"] = 8 * (tile.stages == 4)
        if tile.warps == 4:
            raise RuntimeError("out of resource: shared memory")
        return (right * (float("nan") if tile.depth == 128 else 1.0),)

    def measure(call, budget_ms):
        call()
        return timing.Spread(*[100.0 / (rows_cols[0] * rows_cols[1])] * 3, 1)

    rows_cols = [0, 0]
    real = tune.measure_config

    def remember(config, *rest):
        rows_cols[:] = config.forward.rows, config.forward.cols
        return real(config, *rest)

    monkeypatch.setattr(tune, "most_spills", lambda module: spills["now"])
    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "measure_config", remember)
    options = tune.parse(["--minutes", "1"])
    rows = tune.tune("forward", "16", base, [tune.Case("dense", work, (right,))], options)
    notes = {tuple(row["config"]["forward"].values()): row.get("note", "") for row in rows}
    assert rows[0]["score"] == 1.0
    assert notes[128, 128, 64, 8, 4, 1] == "spills 8"
    assert "shared memory" in notes[128, 128, 64, 4, 3, 1]
    assert "differs" in notes[128, 128, 128, 8, 2, 1]
    found = tune.best(rows, "forward", base)
    assert (found.forward.rows, found.forward.cols) in {(128, 256), (256, 128)}
    assert replace(found, forward=base.forward) == base


def test_an_entry_reads_back_as_the_config():
    config = Config(Tile(64, 128, 32, 4, 2, 3), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 4), chunk=8)
    line = tune.entry(90, "tf32", "lorentz", config)
    assert eval(f"{{{line}}}", {"Config": Config, "Tile": Tile}) == {(90, "tf32", "lorentz"): config}


@pytest.mark.slow
@pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")
def test_the_tuner_runs(tmp_path, capsys):
    path = tmp_path / "tune.json"
    tune.main(["--smoke", "--output", str(path)])
    rows = json.loads(path.read_text())["measurements"]
    assert {row["kernel"] for row in rows} == {"forward", "backward", "product", "chunk"}
    assert all(row["ms"] for row in rows)
    assert '"16"): Config(Tile(' in capsys.readouterr().out
