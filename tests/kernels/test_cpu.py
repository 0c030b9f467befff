"""The C++ of csrc/cpu: every instruction set of this processor, against float64 and against itself.

# M images, N texts, D embed
"""

import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_level_infonce import SPACES, TARGETS, close, forward_backward, problem

from bioclip_hc.kernels import backends, cpu, exp_map0, level_infonce, log_map0, panel, rank_topk
from bioclip_hc.kernels.backends import choose_backend, why_not

pytestmark = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
ROOT = Path(__file__).parents[2]


def supported(name):
    try:
        return bool(cpu.kernels(name))
    except RuntimeError:
        return False


INSTRUCTION_SETS = [
    pytest.param(name, marks=pytest.mark.skipif(not supported(name), reason=f"no {name} here"))
    for name in ("baseline", "avx2", "avx512")
]
each_instruction_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
each_space = pytest.mark.parametrize(("geometry", "space"), SPACES)
each_target = pytest.mark.parametrize("targets", TARGETS)
each_map = pytest.mark.parametrize("function", [exp_map0, log_map0])


@pytest.fixture
def native(monkeypatch):
    """The "cpu" backend with a chosen instruction set and tile."""
    chosen = cpu.kernels

    def choose(isa=None, tile=None):
        monkeypatch.setattr(cpu, "kernels", lambda name=None: chosen(name or isa))
        if tile is not None:
            for operation in (panel.forward, panel.backward, panel.rank_topk):
                *others, _ = operation.__defaults__
                monkeypatch.setattr(operation, "__defaults__", (*others, tile))

    return choose


@pytest.fixture
def threads():
    """torch.set_num_threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory is NaN, so that a hole left by a kernel shows."""

    def poisoned(fresh):
        def call(*args, **kwargs):
            out = fresh(*args, **kwargs)
            return out.fill_(math.nan) if out.is_floating_point() else out.fill_(-(10**6))

        return call

    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


# -- functions


def ulps(got, exact):
    """Largest error in units of the last place of fp32."""
    unit = torch.exp2(exact.abs().clamp_min(2.0**-126).log2().floor() - 23)
    return float(((got.double() - exact) / unit).abs().max())


def apply(name, isa, x):
    y = torch.full_like(x, math.nan)
    getattr(cpu.kernels(isa), name)(x.data_ptr(), y.data_ptr(), len(x))
    return y


@each_instruction_set
def test_exponentials_are_within_2_ulp(isa):
    for low, high in ((-87.3, 0.0), (-1.0, 1.0), (-1e-3, 1e-3), (0.0, 88.0)):
        x = torch.linspace(low, high, 1_000_003, dtype=torch.float64).float().clamp(low, high)
        assert ulps(apply("exponentials", isa, x), x.double().exp()) <= 2


@each_instruction_set
def test_logarithms_are_within_2_ulp(isa):
    for high in (1e-6, 1e-3, 0.5, 1.0, 8.0, 2.0**33):
        x = torch.linspace(0, high, 1_000_003, dtype=torch.float64).float()
        assert ulps(apply("logarithms", isa, x), x.double().log1p()) <= 2
    x = torch.logspace(-38, 28, 500_000, dtype=torch.float64).float()
    assert ulps(apply("logarithms", isa, x), x.double().log1p()) <= 2


@each_instruction_set
def test_functions_at_the_ends_of_their_range(isa):
    below = torch.tensor([-87.5, -1e4, -1e30, -math.inf])
    assert apply("exponentials", isa, below).tolist() == [0, 0, 0, 0]
    assert apply("exponentials", isa, torch.tensor([0.0, -0.0])).tolist() == [1, 1]
    assert apply("logarithms", isa, torch.zeros(3)).tolist() == [0, 0, 0]
    for name in ("exponentials", "logarithms"):
        assert apply(name, isa, torch.tensor([math.nan, 0.5])).isnan().tolist() == [True, False]


# -- the loss


@each_instruction_set
@each_space
@each_target
@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("tile", [3, 16, 1024])
def test_values_and_gradients_of_each_instruction_set(
    poison, native, isa, geometry, space, targets, restrict, tile
):
    native(isa, tile)
    p = problem(M=37, N=53, D=19, taxa_per_rank=9)
    options = {"geometry": geometry, "space": space, "targets": targets, "restrict": restrict, "bias": p.bias}
    exact = forward_backward(p, "reference", **options)
    for got, expected in zip(forward_backward(p, "cpu", **options), exact, strict=True):
        close(got, expected.to(got.dtype), rtol=5e-5, atol=5e-5)


@each_instruction_set
@each_space
@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 1), (1, 257, 3), (257, 1, 16), (63, 257, 33), (130, 600, 8)])
def test_awkward_shapes_of_each_instruction_set(poison, native, isa, geometry, space, M, N, D):
    """More than a stripe of rows, more than a block of columns, and ends that fill no register."""
    native(isa)
    p = problem(M=M, N=N, D=D, taxa_per_rank=40)
    exact = forward_backward(p, "reference", geometry=geometry, space=space)
    for got, expected in zip(forward_backward(p, "cpu", geometry=geometry, space=space), exact, strict=True):
        assert (got - expected).norm() <= 2e-5 * max(1, expected.norm())


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
@each_space
def test_features_may_lie_anyhow_and_differ_in_type(geometry, space, dtypes):
    p = problem(M=21, N=34, D=10, dtype=torch.float32)
    wide = [torch.stack([x, x], 2).to(dtype) for x, dtype in zip((p.image, p.text), dtypes, strict=True)]
    p.image, p.text = wide[0][:, ::2, 0], wide[1][:, ::2, 1]  # strided rows of strided numbers
    spread = _gradients(p, geometry, space)
    p.image, p.text = p.image.contiguous(), p.text.contiguous()
    for got, expected in zip(spread, _gradients(p, geometry, space), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def _gradients(p, geometry, space):
    image, text = (x.detach().requires_grad_() for x in (p.image, p.text))
    nll = level_infonce(image, text, p.taxa, p.rank, p.taxon, 3.0, geometry=geometry, space=space, backend="cpu")
    return (*nll, *torch.autograd.grad(sum(x.sum() for x in nll), (image, text)))


@each_space
def test_bf16_is_within_the_contract(geometry, space):
    """A hundredth of the gradients, by norm; logits are products in fp32."""
    g = torch.Generator().manual_seed(0)
    p = problem(M=300, N=200, D=64, taxa_per_rank=50)
    p.image, p.text = (torch.nn.functional.normalize(x, dim=1).bfloat16() for x in (p.image, p.text))
    weight = torch.rand(300, 3, generator=g)
    results = []
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.bfloat16)):
        image, text = (x.to(dtype).requires_grad_() for x in (p.image, p.text))
        nll_image, nll_text = level_infonce(
            image, text, p.taxa, p.rank, p.taxon, 14.0, geometry=geometry, space=space, backend=backend
        )
        loss = (weight * nll_image).sum() + nll_text.sum()
        results.append([nll_image.detach(), nll_text.detach(), *torch.autograd.grad(loss, (image, text))])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        bound = 1e-5 if i < 2 else 1e-2  # logits are not rounded
        assert (got.double() - expected).norm() <= bound * expected.norm()


@each_instruction_set
@each_space
@each_target
def test_neither_threads_nor_repetition_change_a_bit(native, threads, isa, geometry, space, targets):
    """Of the epilogue; a library product may choose another order of sums for another number of threads."""
    native(isa)
    p = problem(M=150, N=700, D=32, dtype=torch.float32)
    options = {"geometry": geometry, "space": space, "targets": targets, "bias": p.bias}
    results = []
    for count in (1, 2, 2, 3):
        threads(count)
        results.append(forward_backward(p, "cpu", **options))
    for got in results[1:]:
        assert all(torch.allclose(x, y, rtol=1e-6, atol=1e-6) for x, y in zip(got, results[0], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(results[1], results[2], strict=True))


@each_instruction_set
@each_space
def test_the_epilogue_gives_the_same_bits_on_any_number_of_threads(threads, isa, geometry, space):
    results = []
    for count in (1, 2, 5):
        threads(count)
        epilogue = cpu.NativeEpilogue(isa)
        t = _tile(epilogue, geometry, space)
        rows, cols = (cpu.Running.start(n, t.product) for n in t.product.shape)
        product = t.product.clone()
        epilogue.forward(t, rows, cols)
        t.product.copy_(product)
        radii = [torch.zeros(n) for n in t.product.shape]
        pulls = [cpu.Pull(x.lse(), torch.ones_like(x.top), torch.ones_like(x.top)) for x in (rows, cols)]
        total = torch.tensor(epilogue.backward(t, *pulls, *radii), dtype=torch.float64)
        results.append([rows.lse(), rows.positives, cols.lse(), cols.positives, t.product, *radii, total])
    for got in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(got, results[0], strict=True))


def _tile(epilogue, geometry, space):
    """A tile of 200 rows and 333 columns."""
    g = torch.Generator().manual_seed(0)
    one = torch.ones(())
    blocks = []
    for n in (200, 333):
        everyone, v = torch.arange(n), torch.randn(n, 8, generator=g) / 2
        side = panel.prepare(v, one, geometry, space, epilogue)
        unit, h = panel.Block(n, v, epilogue).take(side, everyone)
        scalars = side.polar(everyone)
        blocks.append((unit, None if scalars is None else scalars.rows(slice(None), h)))
    (n, x), (m, y) = blocks
    start = torch.arange(200, dtype=torch.int32)
    return cpu.Tile(n @ m.T, x, y, start, start + 2, start - 1, start + 5, 0, None, -3.0, 1e-7)


@each_instruction_set
@each_space
@pytest.mark.parametrize("where", ["image", "text"])
def test_a_nan_in_the_features_shows_in_the_loss(native, isa, geometry, space, where):
    native(isa)
    p = problem(M=40, N=50, D=8, R=1, dtype=torch.float32)
    getattr(p, where)[3, 5] = math.nan
    p.taxa[3] = p.taxon[3]
    nll_image, nll_text, image, text, *_ = forward_backward(p, "cpu", geometry=geometry, space=space)
    assert nll_image.isnan().any()
    assert nll_text.isnan().any()
    assert image.isnan().any()
    assert text.isnan().any()


def test_a_batch_whose_images_are_all_of_one_taxon():
    p = problem(M=70, N=90, D=8)
    p.taxa[:], p.taxon[:] = 3, 3
    for targets in ("multi_positive", "mask_out"):
        p.pair[:] = torch.arange(70)
        exact = forward_backward(p, "reference", targets=targets)
        for got, expected in zip(forward_backward(p, "cpu", targets=targets), exact, strict=True):
            close(got, expected.to(got.dtype), rtol=5e-5, atol=5e-5)


@each_instruction_set
@each_space
def test_backward_makes_the_logits_of_forward_to_the_last_bit(native, threads, isa, geometry, space):
    """One taxon and mask_out leave each image its own text alone: a share of exactly 1, and no gradient at all."""
    native(isa)
    threads(1)
    n = 69
    p = problem(M=n, N=n, D=64, R=1, dtype=torch.float32)
    p.image, p.text = p.image / 8, p.text / 8
    p.taxa[:], p.taxon[:], p.pair = 0, 0, torch.arange(n)
    options = {"geometry": geometry, "space": space, "targets": "mask_out", "scale": 100.0}
    for x in forward_backward(p, "cpu", **options):
        assert not x.any()


def test_a_scale_of_zero_has_a_gradient():
    p = problem()
    for geometry in ("lorentz", "euclidean"):
        exact = forward_backward(p, "reference", scale=0.0, geometry=geometry)
        for got, expected in zip(forward_backward(p, "cpu", scale=0.0, geometry=geometry), exact, strict=True):
            close(got, expected.to(got.dtype))


def test_a_row_too_short_to_have_a_direction_does_not_spread_nan():
    p = problem(M=4, dtype=torch.float32)
    p.image[0], p.taxa[0], p.pair[0] = 1e-39, -1, -1
    assert forward_backward(p, "cpu", geometry="euclidean", space="tangent")[2][0].tolist() == [0] * 4


def test_opcheck():
    p = problem(dtype=torch.float32)
    image, text = p.image.requires_grad_(), p.text.requires_grad_()
    scalars = torch.tensor(3.0, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    operator = torch.ops.bioclip_hc.level_infonce.default
    labels = p.taxa, p.rank, p.taxon, p.pair, p.bias.float()
    torch.library.opcheck(operator, (image, text, *scalars, *labels, "lorentz", "tangent", "diagonal", True, "cpu"))
    for name in ("exp_map0", "log_map0"):
        torch.library.opcheck(getattr(torch.ops.bioclip_hc, name).default, (image, scalars[1], "cpu"))


# -- maps


@each_instruction_set
@each_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (23, 37), (5, 257), (2, 3, 600), (7,), (0, 4), (4, 0)])
def test_maps_and_their_gradients(poison, native, isa, function, dtype, shape):
    native(isa)
    g = torch.Generator().manual_seed(0)
    v = torch.randn(shape, generator=g)
    rows = v.view(math.prod(shape[:-1]), shape[-1])
    rows *= torch.logspace(-5, 1, len(rows))[:, None] / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)
    rows[1:2] = 0
    v, grad = v.to(dtype), torch.randn(shape, generator=g)
    c = torch.tensor([0.7])
    results = []
    for backend, work in (("reference", torch.float64), ("cpu", dtype)):
        w, k = (
            v.to(work).requires_grad_(),
            c.to(torch.float64 if backend == "reference" else c.dtype).requires_grad_(),
        )
        out = function(w, k, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out, (w, k), grad.to(out.dtype))])
    (out, dv, dc), (got, got_dv, got_dc) = results
    assert got.dtype == torch.float32
    assert got_dv.dtype == dtype
    close(got, out.float(), rtol=1e-6, atol=1e-7)
    eps = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert (got_dv.double() - dv).norm() <= 4 * eps * dv.norm()
    close(got_dc, dc.float(), rtol=1e-5, atol=1e-6)


# -- the best texts


@each_instruction_set
@pytest.mark.parametrize("tile", [1, 7, 1024])
@pytest.mark.parametrize("k", [1, 3, 40])
@each_space
def test_rank_topk_of_each_instruction_set(poison, native, isa, tile, k, geometry, space):
    native(isa, tile)
    p = problem(M=21, N=75, D=9, dtype=torch.float32)
    options = {"geometry": geometry, "space": space, "k": k, "ranks": 4}
    score, index = rank_topk(p.image, p.text, p.rank, 3.0, 0.7, backend="cpu", **options)
    exact, place = rank_topk(p.image.double(), p.text.double(), p.rank, 3.0, 0.7, backend="reference", **options)
    assert torch.equal(index, place)
    close(score, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["tiled", "cpu"])
@pytest.mark.parametrize("k", [1, 3])
@each_space
def test_a_nan_is_the_best_text(backend, k, geometry, space):
    """What is wrong in the features must not hide behind a good score."""
    p = problem(M=5, N=40, dtype=torch.float32)
    p.text[17] = math.nan
    p.rank[:] = 0
    score, index = rank_topk(p.image, p.text, p.rank, geometry=geometry, space=space, k=k, ranks=1, backend=backend)
    assert (index[:, 0, 0] == 17).all()
    assert score[:, 0, 0].isnan().all()
    assert score[:, 0, 1:].isfinite().all()


@each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("k", "D"), [(1, 4), (2, 33), (9, 5)])
@each_space
def test_candidates_of_each_type(poison, native, isa, dtype, k, D, geometry, space):
    native(isa)
    p = problem(M=70, N=50, D=D, dtype=torch.float32)
    image, text = p.image.to(dtype), p.text.to(dtype)
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 30, (70,), generator=g)
    sizes[3] = 0
    listed = torch.cat([torch.randperm(50, generator=g)[:n] for n in sizes.tolist()])
    lists = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]), listed
    options = {"geometry": geometry, "space": space, "k": k, "ranks": 3, "candidates": lists}
    score, index = rank_topk(image, text, p.rank, backend="cpu", **options)
    exact, place = rank_topk(image.double(), text.double(), p.rank, backend="reference", **options)
    assert torch.equal(index, place)
    close(score, exact.float(), rtol=1e-5, atol=1e-5)


def test_the_smaller_index_wins_a_tie():
    text = torch.tensor([[1.0, 2], [2, 1], [1, 2], [2, 1], [0, 0], [1, 2]]).repeat(9, 1)
    image = torch.tensor([[1.0, 1], [2, 1], [-1, 0]])
    for k in (1, 4, 60):
        options = {"geometry": "euclidean", "space": "unit", "k": k, "ranks": 1}
        rank = torch.zeros(len(text), dtype=torch.int64)
        backwards = torch.arange(4) * len(text), torch.arange(len(text)).flip(0).repeat(3)
        for candidates in (None, backwards):
            ours, reference = (
                rank_topk(image, text, rank, backend=b, candidates=candidates, **options)[1]
                for b in ("cpu", "reference")
            )
            assert torch.equal(ours, reference)


# -- where it runs


def test_it_is_the_default_of_fp32_and_16_bit_on_a_cpu():
    here = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert choose_backend(None, here, dtype) == "cpu"
    assert choose_backend(None, here, torch.float64) == "tiled"
    with pytest.raises(ValueError, match=r"backend .cpu. cannot run here: .*not float64"):
        choose_backend("cpu", here, torch.float64)


def test_without_the_library_plain_torch_runs_after_one_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "libbioclip_hc_cpu.so")
    cpu._library.cache_clear()
    backends._warn.cache_clear()
    try:
        p = problem(dtype=torch.float32)
        labels = p.taxa, p.rank, p.taxon
        with pytest.warns(UserWarning, match=r"plain torch instead of 'cpu': .*was not built"):
            once = level_infonce(p.image, p.text, *labels, 3.0)
        with warnings.catch_warnings(action="error"):
            again = level_infonce(p.image, p.text, *labels, 3.0)
        assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
        compiled = torch.compile(lambda v: exp_map0(v).sum(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(p.image), exp_map0(p.image).sum())
        with pytest.raises(ValueError, match=r"backend .cpu. cannot run here: .*was not built"):
            level_infonce(p.image, p.text, p.taxa, p.rank, p.taxon, 3.0, backend="cpu")
        (tmp_path / "libbioclip_hc_cpu.so").write_bytes(b"not a library")
        cpu._library.cache_clear()
        assert "cannot be loaded" in why_not("cpu", torch.device("cpu"))
        cpu._library.cache_clear()
        monkeypatch.setattr(cpu, "LIBRARY", Path(cpu.__file__).with_name("libbioclip_hc_cpu.so"))
        monkeypatch.setattr(cpu, "LAYOUT", cpu.LAYOUT + 1)
        assert "built from other sources" in why_not("cpu", torch.device("cpu"))
    finally:
        monkeypatch.undo()
        cpu._library.cache_clear()
        backends._warn.cache_clear()


@pytest.mark.parametrize("where", [["--build-lib", "out"], ["--inplace"]])  # a wheel; an editable install
def test_without_a_compiler_the_package_still_builds(tmp_path, where):
    """And a library of an earlier build does not stay."""
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    built = tmp_path / ("out" if where[-1] == "out" else "") / "bioclip_hc" / "kernels" / "libbioclip_hc_cpu.so"
    built.parent.mkdir(parents=True)
    (tmp_path / "bioclip_hc" / "kernels").mkdir(parents=True, exist_ok=True)
    built.write_bytes(b"old")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", "t", *where]
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "was not built" in done.stderr
    assert "no-such-compiler" in done.stderr
    if where[-1] == "out":
        assert not built.exists()


def test_an_unknown_instruction_set_is_refused_by_name():
    with pytest.raises(RuntimeError, match="no kernels for 'mmx'"):
        cpu.kernels("mmx")
