"""NaN and infinity in one process: found in that step by all, nothing moved, the step left out or the run ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from faults.lab import Case, Lane, Outcome, World, finish, leaves, need, need_equal

import checkpoint
from journal import read_log

NAME = "nonfinite"
FAULT = "NaN or infinity in pixels, image or text features, logit scale, curvature, loss, a gradient, a parameter"
PROMISE = "found in the same step on all processes; the step is left out, or the run ends; no parameter moves"

SITES = ("pixels", "image features", "text features", "logit scale", "curvature", "loss", "gradient", "parameter")
STEP = 6  # in which it happens


def cases(count: int = 60) -> list[Case]:
    """Sites x values x what to do, on one process and on one of two; at most `count`."""
    made = []
    for processes in (2, 1):
        for site in SITES:
            for value in ("nan", "inf"):
                for policy in ("stop", "skip"):
                    if (site, policy) == ("parameter", "skip"):
                        continue  # it stays what it is: only an earlier checkpoint mends it
                    facts = {"site": site, "value": value, "policy": policy, "processes": processes}
                    name = f"nonfinite, {value} in {site}, {policy}, {processes} process{'es' * (processes > 1)}"
                    made.append(Case(name, site, facts))
    count = min(count, len(made))
    return [made[round(i * (len(made) - 1) / max(1, count - 1))] for i in range(count)]


def run(case: Case, lane: Lane) -> Outcome:
    """Poison one step of the last process."""
    site, value, policy, processes = (case.facts[key] for key in ("site", "value", "policy", "processes"))
    draw = case.random
    options = ("--run.zero-stage", str(draw.choice([0, 1, 2, 3])))
    free = ("--run.on-nonfinite", policy, "--run.save-every", "1", "--run.keep", "99")
    reference = lane.laboratory.reference(lane, *options, processes=processes)
    output = lane.folder(case.name) / "run"
    fault = {"poison": {"site": site, "value": value, "step": STEP}}
    world = World(lane, output, *options, *free, processes=processes, fault=fault, faulty=processes - 1)
    codes = world.wait()
    if policy == "stop":
        need(codes == [2] * processes, f"ended with {codes}: {world.printed[-500:]}")
        said = re.findall(r"^train\.py: .*step (\d+).*process (\d+)", world.printed, re.MULTILINE)
        need(said and set(said) == {(str(STEP), str(processes - 1))}, f"step and process: {world.printed[-500:]}")
        path = checkpoint.newest(output / "checkpoints")[0]
        need(path is not None and path.name == f"step-{STEP - 1:08d}", f"the newest checkpoint is {path}")
        finish(lane, output, *options, *free, processes=processes)
        bits = need_equal(reference, output)
        return Outcome(figures={"bits": sum(bits.values())})
    need(codes == [0] * processes, f"ended with {codes}: {world.printed[-500:]}")
    skipped = [(record["step"], record["skipped"]) for record in read_log(output / "log.jsonl")]
    need(skipped == [(step, int(step >= STEP)) for step in range(1, 13)], f"steps left out: {skipped}")
    before, after = (_state(output / "checkpoints" / f"step-{step:08d}") for step in (STEP - 1, STEP))
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    need(before and not moved, f"moved: {moved[:5]}")
    need(_finite(output / "checkpoints" / "step-00000012"), "the last checkpoint has numbers that are not finite")
    return Outcome(figures={"bits": 0})


def _state(path: Path) -> dict[str, bytes]:
    """Parameters and moments of a checkpoint, by file and name; learning rates are of the step, made or not."""
    return {name: data for file, content in _files(path) for name, data in leaves(content, file)
            if (":torch" in name and "/module" in name) or "optimizer_state" in name or "fp32" in name
            if "lr" not in name.split("/")[-1].split(":")[0]}  # fmt: skip


def _files(path: Path) -> list[tuple[str, Any]]:
    return [(file.name, torch.load(file, weights_only=False)) for file in sorted(path.glob("*states.pt"))]


def _finite(path: Path) -> bool:
    """Whether every number of the model is."""
    whole = True
    for _, content in _files(path):
        for tensor in (content.get("module") or {}).values():
            whole = whole and bool(torch.isfinite(tensor).all())
    return whole


def summary(outcomes: list[Outcome]) -> str:
    """A line of figures."""
    return f"bits moved: {sum(outcome.figures.get('bits', 0) for outcome in outcomes)}"
