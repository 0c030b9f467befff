"""The promised figures of docs/accuracy.md, on a part of the tables that benchmarks/accuracy.py writes."""

import pytest
import torch

from benchmarks import accuracy
from bioclip_hc.kernels import lorentz_inner
from bioclip_hc.kernels.backends import why_not
from bioclip_hc.kernels.reference import exp_map0

ON_CPU = why_not("triton", torch.device("cpu"))
NO_LIBRARY = why_not("cpu", torch.device("cpu"))
needs_library = pytest.mark.skipif(NO_LIBRARY is not None, reason=str(NO_LIBRARY))
needs_interpreter = pytest.mark.skipif(ON_CPU is not None, reason=f"triton on the CPU: {ON_CPU}")


@pytest.mark.parametrize("radius", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("distance", [1e-2, 1.0])
def test_pairs_are_where_they_are_said_to_be(radius, distance):
    one = torch.ones((), dtype=torch.float64)
    v, w = accuracy.pairs(distance, radius, 16)
    assert v.dtype == w.dtype == torch.float32
    torch.testing.assert_close(v.norm(dim=1), torch.full((16,), radius))
    inner = lorentz_inner(*(exp_map0(x.double(), one) for x in (v, w)), backend="reference").diagonal()
    torch.testing.assert_close(torch.acosh(-inner), torch.full_like(inner, distance), rtol=2e-3, atol=0)
    exact = accuracy.truth(v, w)
    torch.testing.assert_close(-exact.logits / accuracy.SCALE, torch.acosh(-inner), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("backend", ["tiled", pytest.param("cpu", marks=needs_library)])
def test_the_contract_in_fp32(backend, scale):
    error = accuracy.batch_error(scale, backend)
    assert 0 < error.nll <= 2e-6
    assert max(error[1:]) <= 1e-5


@needs_interpreter
@pytest.mark.parametrize(
    ("dtype", "tf32", "bound"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-3),
        (torch.float16, False, 1e-2),
        (torch.bfloat16, False, 1e-2),
    ],
)
def test_the_contract_of_the_kernels(dtype, tf32, bound):
    with accuracy.tensor_cores(tf32):
        error = accuracy.batch_error(10.0, "triton", dtype, count=16)
    assert 0 < error.nll <= (2e-6 if bound == 1e-5 else bound)
    assert max(error[1:]) <= bound


@pytest.mark.parametrize("radius", accuracy.RADII)
@pytest.mark.parametrize("distance", [1e-2, 1e-1])
def test_logits_are_no_worse_than_merus(radius, distance):
    ours, merus = (accuracy.measure(method, distance, radius) for method in ("polar, fp32", "MERU, fp32"))
    assert ours.logit_mean <= 1.1 * merus.logit_mean
    assert ours.logit_max <= 2 * merus.logit_max


@pytest.mark.parametrize("method", ["polar, fp32", "polar, TF32 rows", "polar, fp16 rows", "polar, bf16 rows"])
@pytest.mark.parametrize("radius", [0.0, 0.1, 4.0, 12.0])
def test_equal_points_give_finite_gradients(method, radius):
    """12 is past the clamp of the radius."""
    v, _ = accuracy.pairs(0.0, min(radius, 9.0), 64)
    v = v * (radius / min(radius, 9.0) if radius else 0.0)
    answer = accuracy.METHODS[method](v, v.clone())
    assert answer.logits.isfinite().all()
    assert answer.gradient.isfinite().all()


def test_merus_gradient_at_equal_points_was_not_finite():
    """Why the floor on u: with the clamp that torch had, acosh' of 1 comes through."""
    assert accuracy.measure("MERU, fp32, ties pass", 0.0, 0.5).broken > 100


def test_rounding_to_tf32_keeps_ten_bits_to_nearest():
    x = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11 + 2.0**-20, 1 + 2.0**-12, -0.3])
    expected = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-10, 1.0, -0.3])
    found = accuracy.tf32(x)
    assert torch.equal(found[:4], expected[:4])
    assert abs(found[4] + 0.3) <= 0.3 * 2.0**-11


def test_the_document_is_complete():
    """Every table has its place, and holds something."""
    tables = {name: f"table of {name}" for name in ("logits", "gradients", "worse", "origin", "batch")}
    document = accuracy.DOCUMENT.read_text(encoding="utf-8")
    written = accuracy.write(document, tables)
    for name, table in tables.items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->" in written
        assert "|" in document.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]
    assert accuracy.write(written, tables) == written
    with pytest.raises(ValueError, match="must hold <!-- logits --> and <!-- end of logits --> once each"):
        accuracy.write("nothing", tables)
