"""bioclip-hc doctor: versions, devices, and which kernel backends are live and right on this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from bioclip_hc import __version__

if TYPE_CHECKING:
    import torch


def add_command(commands: Any) -> None:
    """Give the command line its `doctor`."""
    p = commands.add_parser("doctor", help="versions, devices and kernel backends of this machine")
    p.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from bioclip_hc.data.decode import decoder
    from bioclip_hc.kernels import cpu, cuda
    from bioclip_hc.kernels.backends import BACKENDS, choose_backend, why_not

    print(f"bioclip_hc {__version__}, python {sys.version.split()[0]}")
    for package in (
        "torch",
        "torchvision",
        "open_clip_torch",
        "webdataset",
        "numpy",
        "triton",
        "deepspeed",
        "matplotlib",
    ):
        try:
            print(f"  {package:<16} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package:<16} not installed")
    native = "none" if cpu.why_not() else f"for {cpu.instruction_set()}"
    print(f"photographs: decoded by {decoder()}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"cpu: {torch.get_num_threads()} threads, {capability}; C++ kernels: {native}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        major, minor = torch.cuda.get_device_capability(i)
        rows = cuda.why_not(torch.device("cuda", i)) or "built, taken by nothing unless asked"
        print(f"cuda:{i}: {torch.cuda.get_device_name(i)}, sm_{major}{minor}; C++ kernels of rows: {rows}")
    if not count:
        print("cuda: none")
    agree = True
    for device in (torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))):
        print(f"kernel backends on {device}; chosen: {choose_backend(None, device, torch.float32)}")
        for backend in BACKENDS:
            reason = why_not(backend, device)
            if reason is None:
                verdict, agrees = _verdict(backend, device)
                agree &= agrees
            else:
                verdict = f"not live: {reason}"
            print(f"  {backend:<10} {verdict}")
    if not count and "TRITON_INTERPRET" in str(why_not("triton", torch.device("cpu"))):
        print("To check the triton backend without a GPU: TRITON_INTERPRET=1 bioclip-hc doctor")
    return 0 if agree else 2


SELF_CHECK_TOLERANCE = 1e-4  # fp32 on a small problem differs by about 1e-6


def _verdict(backend: str, device: torch.device) -> tuple[str, bool]:
    """What the self-check of a live backend says, and whether it agrees with the reference."""
    try:
        error = _self_check(backend, device)
    except Exception as failure:  # whatever a compiler or a driver raises is what the doctor is asked about
        return f"live, but its self-check FAILS: {type(failure).__name__}: {failure}", False
    agrees = error < SELF_CHECK_TOLERANCE  # not for NaN
    found = f"largest difference to the reference {error:.1e}"
    return f"live, {found}" if agrees else f"live, but WRONG: {found}", agrees


def _self_check(backend: str, device: torch.device) -> float:
    """Largest difference of a backend in fp32 to the reference in float64, relative where a result exceeds 1."""
    import torch

    expected = _small_problem("reference", torch.device("cpu"), torch.float64)
    found = _small_problem(backend, device, torch.float32)
    errors = [(a.cpu() - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())


def _small_problem(backend: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Values and gradients of every operation, in both geometries."""
    import torch

    from bioclip_hc.kernels import exp_map0, level_infonce, lorentz_inner, rank_topk

    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 16, generator=generator) / 4 for n in (33, 21)]
    taxa = torch.randint(-1, 5, (33, 3), generator=generator).to(device)
    rank, taxon = (ids.to(device) for ids in (torch.arange(21) % 3, torch.arange(21) // 3 % 5))
    inputs = [x.to(device, dtype).requires_grad_() for x in (*features, torch.tensor(10.0), torch.tensor(0.7))]
    image, text, scale, curv = inputs
    results = []
    for geometry in ("lorentz", "euclidean"):
        rows = level_infonce(image, text, taxa, rank, taxon, scale, curv, geometry=geometry, backend=backend)
        nll = torch.cat([part.flatten() for part in rows])
        score, _ = rank_topk(image, text, rank, scale, curv, geometry=geometry, k=2, ranks=3, backend=backend)
        results += [nll, score, *torch.autograd.grad(nll.sum(), inputs, materialize_grads=True)]
    x, y = (exp_map0(v, curv, backend=backend) for v in (image, text))
    inner = lorentz_inner(x, y, curv, backend=backend)
    results += [x, inner, *torch.autograd.grad(inner.sum(), (image, text, curv))]
    return [result.detach() for result in results]
