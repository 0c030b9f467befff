"""The benchmarks' peers compute what they claim, and their scripts run: what a GPU's figures rest on."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
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
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OBJECTIVES = [(mode, geometry) for mode in problems.MODES for geometry in problems.GEOMETRIES]
PLAIN = [  # ways that also run in float64, without kernels of their own
    (way, mode, geometry)
    for way in peers.WAYS
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
    monkeypatch.setattr(peers, "_compiled_eager", lambda: torch.compile(peers.eager, backend="eager"))
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
