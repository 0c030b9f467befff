"""What DeepSpeed makes of a tiny model at every stage, precision and offload, by 1, 2 and 4 processes.

    python benchmarks/matrix.py

writes the tables of docs/deepspeed.md; tests/distributed/test_deepspeed_matrix.py asserts what they say.
One process imports torch and DeepSpeed and forks the others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "benchmarks")]

import deepspeed  # noqa: E402  imported here so that the forks need not
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.utils import safe_get_full_optimizer_state  # noqa: E402
from documents import require, table, update  # noqa: E402

from bioclip_hc.data.loader import Batch  # noqa: E402
from bioclip_hc.data.samplers import local_slice, unique_texts  # noqa: E402
from bioclip_hc.distributed import share_of_texts  # noqa: E402
from bioclip_hc.packing import pack  # noqa: E402

import checkpoint  # noqa: E402
import engine as engines  # noqa: E402
from config import Config, Model, Optim, Run  # noqa: E402
from parts import build_loss, build_model  # noqa: E402
from step import Step  # noqa: E402

DOCUMENT = ROOT / "docs" / "deepspeed.md"
START, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
TOWERS = {
    "vit": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 32},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},  # it has BatchNorm: statistics to keep
}
GLOBAL_BATCH = 8
LIMIT = 500  # seconds for the jobs of one number of processes
STEPS = 12  # of the learning-rate schedule
SAVED, GONE_ON = 3, 5  # steps
CURVATURE = 0.125  # what a frozen parameter is set to, so that its start is not taken for it


class Case(NamedTuple):
    """One way to run."""

    stage: int
    precision: str = "fp32"
    offload: str = "none"

    def __str__(self) -> str:
        return f"{self.precision} stage {self.stage}" + (f" {self.offload}" if self.offload != "none" else "")


CASES = [Case(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)] + [
    Case(1, "fp32", "optimizer"),
    Case(2, "bf16", "optimizer"),
    Case(3, "fp32", "optimizer"),
    Case(3, "bf16", "parameters"),
]


class Trainer:
    """A tiny model under DeepSpeed, and batches that are functions of the step."""

    def __init__(
        self, case: Case, folder: Path, *, tower: str = "vit", reshard: bool = False, **optim: Any
    ) -> None:
        self.folder, self.case = folder, case
        path = folder / f"{tower}.json"
        options = {"lr": 1e-2, "warmup": 2, "global_batch": GLOBAL_BATCH, "weight_decay": 0.1, **optim}
        self.config = Config(
            model=Model(architecture=str(path)),
            optim=Optim(**options),
            run=Run(zero_stage=case.stage, precision=case.precision, offload=case.offload),
        )
        torch.manual_seed(0)
        self.model = build_model(self.config)
        self.engine, schedule = engines.start_engine(self.model, self.config, STEPS, reshard)
        self.step = Step(self.engine, schedule, self.model, build_loss(self.config), self.config)
        self.schedule, self.done = schedule, 0

    def go(self, steps: int) -> None:
        """Train up to so many steps."""
        while self.done < steps:
            self.step(batch(self.done))
            self.done += 1

    def frozen(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if not p.requires_grad]

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must bring back, whole, from the running engine; a collective."""
        parameters = {}
        with engines.gathered_parameters(list(self.model.parameters()), self.case.stage):
            now = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            parameters[name] = {"now": now[name]}
            if p.requires_grad:
                if self.case.precision != "fp32":
                    parameters[name]["master"] = engines.master(self.engine, p).detach().clone()
                parameters[name] |= {key: self.moment(p, key) for key in ("exp_avg", "exp_avg_sq")}
        base = self.base_optimizer()
        return {
            "parameters": parameters,
            "buffers": {name: b.clone() for name, b in self.model.named_buffers()},
            "steps": sorted({float(s["step"]) for s in base.state.values() if "step" in s}),
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in base.param_groups],
            "lr": self.schedule.get_last_lr(),
            "schedule": self.schedule.last_epoch,
            "global_steps": self.engine.global_steps,
            "drawn": torch.rand(3),
        }

    def base_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def moment(self, p: torch.nn.Parameter, key: str) -> torch.Tensor | None:
        base = self.base_optimizer()
        if self.case.stage == 3:
            return safe_get_full_optimizer_state(p, key).detach().reshape(p.ds_shape).clone()
        if self.case.stage == 0:
            kept = p if self.case.precision == "fp32" else engines.master(self.engine, p)
            return next((s[key].clone() for q, s in base.state.items() if q is kept), None)
        full, pieces = torch.zeros(p.numel()), p._hp_mapping
        if pieces is not None:  # this process holds some of it
            flat = base.state[base.param_groups[pieces.param_group_index]["params"][0]][key]
            ours, kept = pieces.lp_fragment_address, pieces.hp_fragment_address
            full[ours.start : ours.start + ours.numel] = flat[kept.start : kept.start + kept.numel]
        dist.all_reduce(full)
        return full.view(p.shape)


def batch(step: int) -> Batch:
    """The process' part of a step's batch: noise that depends on the species, and the texts of all seven ranks."""
    draw = np.random.default_rng(step)
    species = draw.integers(0, 16, GLOBAL_BATCH)
    taxa = np.stack([100 * r + (species >> max(0, 4 - r)) for r in range(7)], axis=1)
    pixels = draw.normal(size=(GLOBAL_BATCH, 3, 32, 32)) + species[:, None, None, None] / 8
    rank, taxon, _ = unique_texts(taxa)
    local = local_slice(GLOBAL_BATCH, dist.get_rank(), dist.get_world_size())
    share = slice(*share_of_texts(len(rank), dist.get_rank(), dist.get_world_size()))
    texts = [
        [62, *(1 + (t % 100 >> max(0, r - i)) + i for i in range(r + 1)), 63]
        for r, t in zip(rank, taxon, strict=True)
    ]
    return Batch(
        torch.tensor(pixels[local], dtype=torch.float32),
        torch.from_numpy(taxa[local]),
        pack(texts[share]),
        torch.from_numpy(rank[share]),
        torch.from_numpy(taxon[share]),
        torch.arange(GLOBAL_BATCH)[local],
        [],
    )


# -- what each process does -------------------------------------------------------------------------------


def tower_of(case: Case) -> str:
    return "resnet" if case.precision == "fp32" else "vit"  # BatchNorm trains in fp32 only


def save_and_go_on(case: Case, folder: Path) -> dict[str, Any]:
    """Train, save, go on; then the same from the checkpoint."""
    first = Trainer(case, folder, tower=tower_of(case))
    set_frozen(first)
    first.go(SAVED)
    place = folder / str(case).replace(" ", "-")
    path = checkpoint.save(first.engine, place, SAVED, {}, keep=1)
    saved = first.state()
    first.go(GONE_ON)
    gone_on = first.state()
    again = Trainer(case, folder, tower=tower_of(case))
    checkpoint.load(again.engine, path)
    loaded, again.done = again.state(), SAVED
    again.go(GONE_ON)
    return {"saved": saved, "loaded": loaded, "gone on": gone_on, "gone on again": again.state()}


def set_frozen(trainer: Trainer) -> None:
    for p in trainer.frozen():
        if hasattr(p, "ds_id"):
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                p.data.fill_(CURVATURE)
        else:
            p.data.fill_(CURVATURE)


def load_elsewhere(case: Case, folder: Path) -> dict[str, Any]:
    """From the checkpoint of two processes."""
    path = folder / str(case).replace(" ", "-") / f"step-{SAVED:08d}"
    other = Trainer(case, folder, tower=tower_of(case), reshard=checkpoint.must_reshard(path, case.stage))
    checkpoint.load(other.engine, path)
    loaded, other.done = other.state(), SAVED
    other.go(GONE_ON)
    return {"loaded": loaded, "gone on": other.state()}


def descend(case: Case, folder: Path) -> dict[str, Any]:
    """Four steps of SGD, which does not hide the size of a gradient as Adam does."""
    with sgd():
        trainer = Trainer(case, folder, lr=0.5, weight_decay=0.0)
        trainer.go(4)
    with engines.gathered_parameters(list(trainer.model.parameters()), case.stage):
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def clip(case: Case, folder: Path) -> dict[str, float]:
    """Length of one step of SGD at learning rate 1 with the gradient clipped at a length, or not at all."""
    lengths = {}
    for most in (0.0, 0.125):
        with sgd():
            trainer = Trainer(case, folder, lr=1.0, warmup=0, weight_decay=0.0, grad_clip=most)
            before = whole(trainer)
            trainer.go(1)
            lengths[str(most)] = float(
                sum(((x - y) ** 2).sum() for x, y in zip(whole(trainer), before, strict=True)) ** 0.5
            )
    return lengths


def whole(trainer: Trainer) -> list[torch.Tensor]:
    with engines.gathered_parameters(list(trainer.model.parameters()), trainer.case.stage):
        return [p.detach().double().clone() for p in trainer.model.parameters()]


class sgd:
    """Inside, AdamW is SGD, and DeepSpeed does not mind."""

    def __enter__(self) -> None:
        self.kept = torch.optim.AdamW, engines.deepspeed_config
        told = engines.deepspeed_config
        torch.optim.AdamW = lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr)  # type: ignore[misc, assignment]
        engines.deepspeed_config = lambda *a: told(*a) | {"zero_allow_untested_optimizer": True}

    def __exit__(self, *error: object) -> None:
        torch.optim.AdamW, engines.deepspeed_config = self.kept  # type: ignore[misc]


# -- processes --------------------------------------------------------------------------------------------


def on_processes(count: int, jobs: list[tuple[str, Callable[[], Any]]], folder: Path) -> dict[str, Any]:
    """Fork `count` processes that do all jobs, one after the other; what the first process found, by name.

    A job that raises is a string: its error. Raises RuntimeError where a process does not come to the end.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    children = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
                torch.set_num_threads(1)
                signal.alarm(LIMIT)
                store = dist.FileStore(str(place / "store"), count)
                dist.init_process_group(
                    "gloo", timeout=timedelta(seconds=LIMIT), store=store, rank=rank, world_size=count
                )
                found = {name: _result(job) for name, job in jobs}
                if rank == 0:
                    torch.save(found, place / "found.pt")
                dist.barrier()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        raise RuntimeError(f"{count} processes ended with {codes}")
    return torch.load(place / "found.pt", weights_only=False)


def _result(job: Callable[[], Any]) -> Any:
    try:
        return job()
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run(folder: Path, cases: list[Case], more_cases: list[Case]) -> dict[int, dict[str, Any]]:
    """Everything, by number of processes; of `more_cases`, resuming by four processes is tried too."""
    for name, tower in TOWERS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": TEXT}))
    stages = [Case(stage) for stage in range(4)]

    def jobs(kind: str, job: Callable[[Case, Path], Any], cases: list[Case]) -> list[tuple[str, Callable[[], Any]]]:
        return [(f"{kind} {case}", partial(job, case, folder)) for case in cases]

    return {
        2: on_processes(
            2,
            jobs("resume", save_and_go_on, cases) + jobs("sgd", descend, stages) + jobs("clip", clip, stages),
            folder,
        ),
        1: on_processes(1, jobs("resume", load_elsewhere, cases) + jobs("sgd", descend, stages), folder),
        4: on_processes(4, jobs("resume", load_elsewhere, more_cases) + jobs("sgd", descend, stages), folder),
    }


def differences(a: Any, b: Any, where: str = "") -> dict[str, float]:
    """Where two states differ, and by how much (infinity where not comparable); empty where bit for bit equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype:
        return {} if torch.equal(a, b) else {where: float((a.double() - b.double()).abs().max())}
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(f"{where}/{key}", a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = [(f"{where}/{i}", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return (
            {}
            if type(a) is type(b) and not isinstance(a, (torch.Tensor, dict)) and a == b
            else {where: float("inf")}
        )
    found: dict[str, float] = {}
    for name, x, y in pairs:
        found |= differences(x, y, name)
    return found


def document(found: dict[int, dict[str, Any]]) -> str:
    """The tables of docs/deepspeed.md."""
    saved = {name: x["saved"] for name, x in found[2].items() if name.startswith("resume")}

    def cell(count: int, name: str) -> str:
        x = found[count].get(name)
        if x is None or isinstance(x, str):
            return x or "not tried"
        found_at = differences(saved[name], x["loaded"])
        if count == 2:
            found_at |= differences(x["gone on"], x["gone on again"])
        return f"{len(found_at)} differ" if found_at else "bit for bit"

    resumed = [[name.removeprefix("resume "), *(cell(count, name) for count in (2, 1, 4))] for name in saved]
    start = found[1]["sgd fp32 stage 0"]

    def drift(count: int, name: str) -> str:
        x = found[count].get(name)
        return "" if x is None else f"{max(differences(start, x).values(), default=0.0):.1e}"

    descents = [
        [f"stage {stage}", *(drift(count, f"sgd fp32 stage {stage}") for count in (1, 2, 4))] for stage in range(4)
    ]
    clipped = [
        [f"stage {stage}", *(f"{length:.6f}" for length in found[2][f"clip fp32 stage {stage}"].values())]
        for stage in range(4)
    ]
    heads = (
        ["run of 2 processes", "resumed by 2, and 2 steps on", "by 1", "by 4"],
        ["SGD", "1 process", "2 processes", "4 processes"],
        ["step of SGD", "optim.grad_clip = 0", "optim.grad_clip = 0.125"],
    )
    bodies = (resumed, descents, clipped)
    return "\n\n".join(table(head, lines) for head, lines in zip(heads, bodies, strict=True))


def main() -> None:
    require(DOCUMENT, START, END)
    folder = Path(tempfile.mkdtemp())
    try:
        update(DOCUMENT, START, END, document(run(folder, CASES, CASES)))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
