"""Compile every shipped GPU kernel ahead of time for sm_80 and sm_90, without a GPU, and read the machine code.

    python benchmarks/aot.py              # print the table
    python benchmarks/aot.py --write      # and put it into docs/aot.md

The operations run as they do in training, on CPU tensors, with every launch replaced by its compilation for the
wanted architecture: so what is compiled is what is launched, argument for argument. They never look at a result on
the host, so nothing else has to be pretended. Triton keeps what it compiled: broken off, a run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TABLE_FILE = Path(__file__).parents[1] / "docs" / "aot.md"
ARCHITECTURES = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may take (CUDA C programming guide, table 24)
TENSOR_CORE = {80: ("HMMA",), 90: ("HGMMA", "HMMA")}
ASYNCHRONOUS = {80: ("LDGSTS",), 90: ("UTMALDG", "LDGSTS")}
COUNTED = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG", "MUFU", "STL", "LDL")
# kernels that are a matrix product with an epilogue
PRODUCTS = ("forward", "recompute", "add_row_gradient", "add_column_gradient", "inner", "walk")


@dataclass(frozen=True)
class Compiled:
    """What one launch became."""

    kernel: str  # without its underscore and "_kernel"
    case: str
    precision: str  # "16", "tf32" or "ieee"
    arch: int
    registers: int
    stack: int  # bytes a thread spills, and its other local memory
    shared: int  # bytes a block
    warps: int
    instructions: Counter[str]

    @property
    def is_fine(self) -> bool:
        """No spills, within shared memory, and products on tensor cores fed by asynchronous copies."""
        fits = not self.stack and self.shared <= SHARED_LIMIT[self.arch]
        exact = self.precision == "ieee"
        return fits and (self.kernel not in PRODUCTS or exact or (self.tensor_core > 0 and self.asynchronous > 0))

    @property
    def resident(self) -> int:
        """How many blocks one multiprocessor holds at a time, as far as registers, threads and shared memory go."""
        threads = 32 * self.warps
        registers = -(-self.registers // 8) * 8 * threads  # given out by eights
        shared = self.shared + 1024  # a block's own share of the system
        return min(65536 // registers, 2048 // threads, (SHARED_LIMIT[self.arch] + 1024) // shared)

    @property
    def tensor_core(self) -> int:
        return sum(self.instructions[name] for name in TENSOR_CORE[self.arch])

    @property
    def asynchronous(self) -> int:
        return sum(self.instructions[name] for name in ASYNCHRONOUS[self.arch])


class _Nowhere:
    """Stands for a GPU that nothing is launched on."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are kept by device: two architectures must not share one

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def launches_compiled(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Within, a launch compiles its kernel for arch, once, and does nothing else; gives (name, kernel) pairs."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    made: list[tuple[str, Any]] = []
    run = JITFunction.run
    before = driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if all(kernel is not other for _, other in made):
            made.append((self.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_Nowhere(arch))
    try:
        yield made
    finally:
        JITFunction.run = run
        driver._active = before


def read(name: str, case: str, precision: str, arch: int, kernel: Any) -> Compiled:
    """Registers, memory and instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "--no-dataflow", "--print-code", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of {name}:\n{usage}")
    registers, stack, local = (int(x) for x in found.groups())
    words = Counter(re.findall(rf"\b({'|'.join(COUNTED)})\b", code))
    metadata = kernel.metadata
    short = name.removeprefix("_").removesuffix("_kernel")
    return Compiled(
        short, case, precision, arch, registers, stack + local, metadata.shared, metadata.num_warps, words
    )


def _tool(name: str, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


# -- what is shipped ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call that launches kernels, and where they should run."""

    name: str
    precision: str
    arch: int
    call: Callable[[], Any]

    @property
    def full_name(self) -> str:
        return f"{self.name}, {self.precision}"


M = N = 4096
D, R = 512, 7
DTYPES = {"16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
SPACES = {"lorentz": ("tangent", "hyperboloid"), "euclidean": ("tangent", "unit")}


def cases() -> Iterator[Case]:
    """Every operation in every way that makes other code of its kernels."""
    yield from infonce_cases()
    yield from map_cases()
    yield from topk_cases()


def infonce_cases() -> Iterator[Case]:
    """level_infonce forward and backward, for each entry of the table."""
    from bioclip_hc.kernels.configs import TABLE

    plain = ("multi_positive", False, True, R)
    ways = []
    for targets in ("multi_positive", "diagonal", "mask_out"):
        ways += [
            (targets, (targets, False, True, R)),
            (f"{targets}, biased", (targets, True, True, R)),
            (f"{targets}, all ranks", (targets, False, False, R)),
        ]
    for (arch, precision, geometry), config in TABLE.items():
        usual, other = SPACES[geometry]
        calls = [(words, DTYPES[precision], usual, way) for words, way in ways]
        calls.append((other, DTYPES[precision], other, plain))
        if precision == "16":
            calls.append(("one rank", torch.float16, usual, ("multi_positive", False, True, 1)))
            calls.append((f"{other}, bf16", torch.bfloat16, other, plain))
        for words, dtype, space, way in calls:
            yield Case(
                f"{geometry}, {words}", precision, arch, partial(_infonce, config, dtype, geometry, space, *way)
            )


def _infonce(
    config: Any,
    dtype: torch.dtype,
    geometry: str,
    space: str,
    targets: str,
    biased: bool,
    restrict: bool,
    ranks: int,
) -> None:
    from bioclip_hc.kernels import triton_infonce
    from bioclip_hc.kernels.objective import make_objective

    ids = torch.arange(M) % 64
    image, text = _features(dtype)
    o = make_objective(
        image, text, ids[:, None].expand(M, ranks), ids % ranks, ids, geometry=geometry, space=space,
        targets=targets, pair=torch.arange(M), text_bias=torch.zeros(N) if biased else None, restrict=restrict,
    )  # fmt: skip
    scale, curv = torch.tensor(10.0), torch.tensor(1.0)
    nll_image, nll_text, *lse = triton_infonce.forward(image, text, scale, curv, o, config)
    triton_infonce.backward(image, text, scale, curv, o, *lse, nll_image, nll_text, nll_text, config)


def map_cases() -> Iterator[Case]:
    """exp_map0 and log_map0, forward and backward, and lorentz_inner."""
    from bioclip_hc.kernels import triton_maps
    from bioclip_hc.kernels.configs import INNER

    curv = torch.tensor(1.0)
    for arch in ARCHITECTURES:
        for precision, dtype in DTYPES.items():
            x, y = _features(dtype)
            yield Case(
                "lorentz_inner", precision, arch, partial(triton_maps.lorentz_inner, x, y, curv, INNER[precision])
            )
            if precision == "tf32":
                continue  # the maps have no product
            for name in ("exp_map0", "log_map0"):
                yield Case(name, precision, arch, partial(triton_maps.forward, name, x, curv))
                gradient = partial(triton_maps.backward, name, torch.zeros(M, D), x, curv)
                yield Case(f"{name} backward", precision, arch, gradient)


def topk_cases() -> Iterator[Case]:
    """rank_topk among all texts and among candidates, for few texts and for the most that registers keep."""
    from bioclip_hc.kernels import triton_topk
    from bioclip_hc.kernels.configs import TOPK

    text_rank = torch.arange(N) % R
    lists = torch.arange(M + 1) * 8, torch.arange(M * 8) % N
    scale, curv = torch.tensor(10.0), torch.tensor(1.0)
    for arch in ARCHITECTURES:
        for precision, dtype in DTYPES.items():
            for geometry, (space, _) in SPACES.items():
                for k in (1, 5, triton_topk.KEPT[-1]):
                    for words, candidates in (("", None), (", candidates", lists)):
                        call = partial(
                            triton_topk.rank_topk, *_features(dtype), text_rank, scale, curv, geometry, space, k, R,
                            candidates, TOPK[precision],
                        )  # fmt: skip
                        yield Case(f"{geometry}, top {k}{words}", precision, arch, call)


def _features(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(M, D, dtype=dtype), torch.zeros(N, D, dtype=dtype)


def compile_all(only: str = "") -> Iterator[Compiled]:
    """Every shipped configuration on every architecture, of the cases whose name contains `only`."""
    chosen = [case for case in cases() if only in case.full_name]
    seen = set()  # most kernels do not depend on everything that a case is made of
    for number, case in enumerate(chosen, 1):
        torch.backends.cuda.matmul.allow_tf32 = case.precision == "tf32"
        with launches_compiled(case.arch) as made:
            case.call()
        for name, kernel in made:
            if (case.arch, kernel.hash) not in seen:
                seen.add((case.arch, kernel.hash))
                yield read(name, case.name, case.precision, case.arch, kernel)
        print(f"{number}/{len(chosen)} sm_{case.arch} {case.full_name}: {len(seen)} kernels", file=sys.stderr)


# -- tables ---------------------------------------------------------------------------------------------------


def summary(results: list[Compiled]) -> str:
    """Markdown, a line for each kernel and precision: the worst over its variants, sm_80 / sm_90."""
    head = "kernel, product, variants, warps, registers, blocks an SM, stack, shared KiB, tensor core, copies"
    lines = [_line(*head.split(", ")), "|---" * 10 + "|"]
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for c in results:
        groups.setdefault((c.kernel, c.precision if c.kernel in PRODUCTS else ""), []).append(c)
    for (kernel, precision), group in sorted(groups.items(), key=lambda item: _reading_order(*item[0])):
        archs = [found for arch in ARCHITECTURES if (found := [c for c in group if c.arch == arch])]
        figures = [
            [len(found) for found in archs],
            [max(c.warps for c in found) for found in archs],
            [max(c.registers for c in found) for found in archs],
            [min(c.resident for c in found) for found in archs],
            [max(c.stack for c in found) for found in archs],
            [max(-(-c.shared // 1024) for c in found) for found in archs],
            [min(c.tensor_core for c in found) for found in archs],
            [min(c.asynchronous for c in found) for found in archs],
        ]
        lines.append(_line(kernel, precision, *(" / ".join(map(str, of_archs)) for of_archs in figures)))
    return "\n".join(lines)


def _reading_order(kernel: str, precision: str) -> tuple[int, str, str]:
    return PRODUCTS.index(kernel) if kernel in PRODUCTS else len(PRODUCTS), kernel, precision


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(results: list[Compiled]) -> str:
    """Markdown, a line for each kernel as compiled."""
    head = "kernel, first met in, sm, warps, registers, stack, shared KiB, tensor core, copies"
    lines = [_line(*head.split(", ")), "|---" * 9 + "|"]
    for c in results:
        case, shared = f"{c.case}, {c.precision}", f"{c.shared / 1024:.0f}"
        lines.append(
            _line(c.kernel, case, c.arch, c.warps, c.registers, c.stack, shared, c.tensor_core, c.asynchronous)
        )
    return "\n".join(lines)


HEAD = """# Every shipped GPU kernel, compiled without a GPU

`python benchmarks/aot.py --write`, Triton {version}, D = {D}: {count} kernels, {wrong}. A line holds the worst of
a kernel's variants (geometry, space, targets, bias, restriction, k, input dtype), sm_80 / sm_90. Blocks an SM: as
many as registers, threads and shared memory allow. Stack: bytes that a thread spills. Tensor core counts HMMA and
HGMMA instructions, copies the asynchronous ones (LDGSTS and UTMALDG); exact fp32 (ieee) runs on no tensor core.
`--all` prints every variant.

"""


def main() -> None:
    """Compile everything, print the table, and fail if a kernel spills or does not fit."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--write", action="store_true", help=f"write {TABLE_FILE.name}")
    options.add_argument("--all", action="store_true", help="print a line for every variant")
    options.add_argument("--only", default="", help='cases whose name contains that, as "diagonal, 16"')
    chosen = options.parse_args()
    if chosen.write and chosen.only:
        options.error("--write takes every case; leave out --only")
    results = list(compile_all(chosen.only))
    print(table(results) if chosen.all else summary(results))
    wrong = [c for c in results if not c.is_fine]
    if chosen.write:
        verdict = f"{len(wrong)} of them wrong" if wrong else "none spills, all fit"
        head = HEAD.format(version=triton.__version__, D=D, count=len(results), wrong=verdict)
        TABLE_FILE.write_text(head + summary(results) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit(f"{len(wrong)} kernels spill, do not fit, or leave tensor cores idle:\n{table(wrong)}")


if __name__ == "__main__":
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    main()
