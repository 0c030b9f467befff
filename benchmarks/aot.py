"""Compile every shipped GPU kernel ahead of time for sm_80 and sm_90, without a GPU, and read the machine code.

    python benchmarks/aot.py              # print the table
    python benchmarks/aot.py --write      # and put it into docs/aot.md

The operations run as they do in training, on CPU tensors, with every launch replaced by its compilation for the
wanted architecture: so what is compiled is what is launched, argument for argument. They never look at a result on
the host, so nothing else has to be pretended.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TABLE_FILE = Path(__file__).parents[1] / "docs" / "aot.md"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may take (CUDA C programming guide, table 24)
TENSOR_CORE = {80: ("HMMA",), 90: ("HGMMA", "HMMA")}
ASYNCHRONOUS = {80: ("LDGSTS",), 90: ("UTMALDG", "LDGSTS")}
COUNTED = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG", "MUFU", "STL", "LDL")


@dataclass(frozen=True)
class Compiled:
    """What one launch became."""

    kernel: str
    case: str
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
        multiplies = any(word in self.kernel for word in ("forward", "recompute", "gradient"))
        exact = self.case.endswith("ieee")
        return fits and (not multiplies or exact or (self.tensor_core > 0 and self.asynchronous > 0))

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


def read(name: str, case: str, arch: int, kernel: Any) -> Compiled:
    """Registers, memory and instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of {name}:\n{usage}")
    registers, stack, local = (int(x) for x in found.groups())
    words = Counter(re.findall(rf"\b({'|'.join(COUNTED)})\b", code))
    metadata = kernel.metadata
    return Compiled(name, case, arch, registers, stack + local, metadata.shared, metadata.num_warps, words)


def _tool(name: str, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


# -- what is shipped ------------------------------------------------------------------------------------------


def infonce_cases() -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, arch, a call of every kernel) of level_infonce, for each entry of the table."""
    from bioclip_hc.kernels import triton_infonce
    from bioclip_hc.kernels.configs import TABLE
    from bioclip_hc.kernels.objective import make_objective

    M = N = 4096
    ids = torch.arange(M) % 64
    for (arch, precision, geometry), config in TABLE.items():
        dtype = torch.float16 if precision == "16" else torch.float32
        image, text = (torch.zeros(rows, 512, dtype=dtype) for rows in (M, N))
        for targets, bias in (
            ("multi_positive", None), ("multi_positive", torch.zeros(N)), ("diagonal", None), ("mask_out", None),
            ("mask_out", torch.zeros(N)),
        ):  # fmt: skip
            o = make_objective(
                image, text, ids[:, None].expand(M, 7), ids % 7, ids, geometry=geometry, space="tangent",
                targets=targets, pair=torch.arange(M), text_bias=bias, restrict=True,
            )  # fmt: skip

            def call(image=image, text=text, o=o, config=config) -> None:
                scalars = torch.tensor(10.0), torch.tensor(1.0)
                nll_image, nll_text, *lse = triton_infonce.forward(image, text, *scalars, o, config)
                triton_infonce.backward(image, text, *scalars, o, *lse, nll_image, nll_text, config)

            yield f"{geometry}, {targets}{', biased' if bias is not None else ''}, {precision}", arch, call


def compile_all(only: str = "") -> Iterator[Compiled]:
    """Every shipped configuration on every architecture, of the cases whose name contains `only`."""
    seen = set()  # most kernels do not depend on everything that a case is made of
    for case, arch, call in infonce_cases():
        if only not in case:
            continue
        torch.backends.cuda.matmul.allow_tf32 = case.endswith("tf32")
        with launches_compiled(arch) as made:
            call()
        for name, kernel in made:
            if (arch, kernel.hash) not in seen:
                seen.add((arch, kernel.hash))
                yield read(name, case, arch, kernel)


def table(results: list[Compiled]) -> str:
    """Markdown, a line for each kernel as compiled."""
    lines = [
        "| kernel | first met in | sm | warps | registers | stack | shared KiB | tensor core | async copies |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in results:
        lines.append(
            f"| {c.kernel.strip('_')} | {c.case} | {c.arch} | {c.warps} | {c.registers} | {c.stack} | "
            f"{c.shared / 1024:.0f} | {c.tensor_core or ''} | {c.asynchronous or ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compile everything, print the table, and fail if a kernel spills or does not fit."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--write", action="store_true", help=f"write {TABLE_FILE.name}")
    options.add_argument("--only", default="", help='cases whose name contains that, as "diagonal, 16"')
    chosen = options.parse_args()
    results = list(compile_all(chosen.only))
    print(table(results))
    if chosen.write:
        head = (
            "# Every shipped GPU kernel, compiled without a GPU\n\n"
            f"`python benchmarks/aot.py --write`, Triton {triton.__version__}, level_infonce at D = 512. Stack: "
            "bytes spilt; tensor core counts HMMA and HGMMA instructions, async copies LDGSTS and UTMALDG.\n\n"
        )
        TABLE_FILE.write_text(head + table(results) + "\n", encoding="utf-8")
    wrong = [c for c in results if not c.is_fine]
    if wrong:
        raise SystemExit(f"{len(wrong)} kernels spill, do not fit, or leave tensor cores idle:\n{table(wrong)}")


if __name__ == "__main__":
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    main()
