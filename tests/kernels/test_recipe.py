"""docs/meru.md: its lines, executed, beside a plain formulation of MERU's contrastive term.

# W processes, G global pairs, F encoder's input, D embed
"""

import multiprocessing
import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

DOCUMENT = Path(__file__).parents[2] / "docs" / "meru.md"
G, F, D = 6, 5, 8
F64 = torch.float64


def recipe():
    """The document's code block."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return code


def by_recipe(image, text, scale, curv):
    names = {"torch": torch, "image": image, "text": text, "scale": scale, "curv": curv}
    exec(recipe(), names)
    return names["loss"]


def plain(image, text, scale, curv):
    """MERU (arXiv 2304.09172, section 3) on all pairs: Lorentz inner product, acosh, cross-entropy both ways."""
    time = [torch.sqrt(1 / curv + x.square().sum(1)) for x in (image, text)]
    inner = image @ text.T - torch.outer(*time)
    logits = -scale * torch.acosh(-curv * inner) / curv.sqrt()
    own = torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def lift(v, curv):
    """MERU's exp_map0: tangent vectors to space components."""
    r = curv.sqrt() * v.norm(dim=1, keepdim=True)
    return v * r.sinh() / r


def parameters():
    """Two encoders, scale and curvature, float64."""
    g = torch.Generator().manual_seed(0)
    values = [torch.randn(F, D, generator=g, dtype=F64) / 4 for _ in range(2)]
    return [x.requires_grad_() for x in (*values, *(torch.tensor([x], dtype=F64) for x in (14.3, 0.7)))]


def encoded(rows=slice(None), dtype=F64):
    """Space components of some of the G pairs, and what they were made of."""
    inputs = torch.randn(2, G, F, generator=torch.Generator().manual_seed(1), dtype=F64)[:, rows]
    W_image, W_text, scale, curv = leaves = parameters()
    image, text = (lift(x @ W, curv).to(dtype) for x, W in zip(inputs, (W_image, W_text), strict=True))
    return (image, text, scale.to(dtype), curv.to(dtype)), leaves


def test_the_recipe_has_six_lines():
    assert len([line for line in recipe().splitlines() if line]) == 6


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_merus(dtype, tolerance):
    """In fp32 both start from the same fp32 features; the plain formulation then runs in float64."""
    features, _ = encoded(dtype=dtype)
    features = [x.detach().requires_grad_() for x in features]
    exact = [x.detach().double().requires_grad_() for x in features]
    loss, expected = by_recipe(*features), plain(*exact)
    assert loss.dtype == dtype
    assert abs(loss - expected) < tolerance * expected
    for got, true in zip(torch.autograd.grad(loss, features), torch.autograd.grad(expected, exact), strict=True):
        assert true.norm() > 1e-3
        assert (got - true).norm() < tolerance * true.norm()


def worker(folder, rank, size):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    features, leaves = encoded(slice(rank * G // size, (rank + 1) * G // size))
    loss = by_recipe(*features)
    torch.save((loss.detach(), torch.autograd.grad(loss, leaves)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    """Averaged over processes, as DDP does, the parameters' gradients are those of the whole batch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "pytest"])
    processes = [context.Process(target=worker, args=(str(tmp_path), rank, 2)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    features, leaves = encoded()
    expected = plain(*features)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for loss, _ in results:
        torch.testing.assert_close(loss, expected.detach())
    for i, true in enumerate(torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close((results[0][1][i] + results[1][1][i]) / 2, true)
