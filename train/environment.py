"""What a run runs on and what it will take, said once at its start.

# P parameters, W processes, B local images, D embed

Estimates are arithmetic on the configuration, in bytes; `python train/train.py CONFIG --dry-run` measures.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bioclip_hc.data.decode import decoder
from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.preprocess import TrainingTransform
from bioclip_hc.data.quarantine import BadSample, by_cause
from bioclip_hc.data.samplers import EMPTY, supervise, unique_texts
from bioclip_hc.kernels.backends import BACKENDS, why_not
from bioclip_hc.model import HierarchicalCLIP

from card import versions
from config import Config
from engine import deepspeed_config

TRAINING_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a parameter as the towers see it
BUCKET = 500_000_000  # elements; DeepSpeed's reduce_bucket_size
PREFETCH = 2  # batches that torch's loader lets every worker run ahead
CAUSES = 12  # of unusable samples that are told one by one
LOOK_AT = 3  # batches in which texts are counted
STATES = ("parameters", "gradients", "bucket", "optimizer", "texts")  # what a process holds beside activations


def report(
    config: Config, model: HierarchicalCLIP, batches: TrainingBatches, steps: int, hosts: list[dict[str, Any]]
) -> dict[str, Any]:
    """All of it, as JSON; `lines` writes it for people. `hosts` as `find_hosts` gives them."""
    device = next(model.parameters()).device
    plan = batches.plan
    W, local = batches.world_size, plan.global_batch // batches.world_size
    texts = texts_a_step(batches)
    numbers = [getattr(p, "ds_numel", p.numel()) for p in model.parameters()]  # ZeRO-3 leaves none in p itself
    trained = sum(n for n, p in zip(numbers, model.parameters(), strict=True) if p.requires_grad)
    runs, others = backend(device)
    return {
        "world_size": W,
        "device": str(device),
        "hosts": hosts,
        "threads": torch.get_num_threads(),
        "backend": runs,
        "not_backend": others,
        "global_batch": plan.global_batch,
        "local_batch": local,
        "micro_batch": config.run.micro_batch,
        "texts_a_step": texts,
        "steps": steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "samples": plan.n,
        "remainder": {"samples": plan.n % plan.global_batch, "fate": plan.remainder},
        "unusable": len(batches.shards.bad),
        "decoder": decoder(),
        "taxa": batches.taxonomy.size,
        "precision": config.run.precision,
        "zero_stage": config.run.zero_stage,
        "parameters": sum(numbers),
        "estimated_bytes": {
            **model_states(sum(numbers), trained, config, W, device.type),
            "texts": 2 * 4 * texts * model.model_cfg["embed_dim"],  # gathered features and their gradients, fp32
            "loader": loader_bytes(local, image_bytes(batches.transform), config.data.workers),
        },
        "versions": {**versions(), **device_versions()},
    }


def model_states(
    parameters: int, trained: int, config: Config, world_size: int, device_type: str = "cuda"
) -> dict[str, int]:
    """Bytes of one process for parameters, gradients and AdamW under the precision and the ZeRO stage.

    Counted as DeepSpeed holds them at the end of a backward pass: fp32 masters beside the parameters (but at stage
    0 in fp32, where the parameters are the masters), two moments in fp32; from stage 1 on the optimizer and the
    reduced gradients are a process' share, and gradients pass through one bucket of fixed size (on a CPU what is
    never touched of it takes no memory); stage 3 shares out the parameters too.
    """
    stage, size = config.run.zero_stage, TRAINING_BYTES[config.run.precision]
    share = world_size if stage >= 1 else 1
    masters = 0 if stage == 0 and size == 4 else 4
    bucket = int(deepspeed_config(config)["zero_optimization"].get("reduce_bucket_size", BUCKET))
    bucket = min(bucket, trained) if device_type == "cpu" else bucket
    return {
        "parameters": size * parameters // (world_size if stage == 3 else 1),
        "gradients": size * trained // share,
        "optimizer": (8 + masters) * trained // share,
        "bucket": size * bucket if stage >= 1 else 0,
    }


def image_bytes(transform: TrainingTransform) -> int:
    """Bytes of one image as the loader hands it over."""
    return transform.shape.numel() * transform.blank.dtype.itemsize


def loader_bytes(local_batch: int, image: int, workers: int) -> int:
    """Bytes of images that one process' loader holds at most: whole batches, ahead of the one in use."""
    return (PREFETCH * workers + 1) * local_batch * image


def texts_a_step(batches: TrainingBatches) -> int:
    """Distinct texts of a global batch, the mean of a few drawn like the run's own.

    (The run's own first ones would want the order of the epoch: seconds for ten million samples.)
    """
    plan, counts = batches.plan, []
    draw = np.random.default_rng(plan.seed)
    for step in range(LOOK_AT):
        drawn = draw.choice(plan.n, min(plan.n, plan.global_batch), replace=False, shuffle=False)
        indices = np.pad(drawn, (0, plan.global_batch - len(drawn)), constant_values=EMPTY)
        taxa = supervise(batches.taxa_of(indices), batches.mode, plan.seed, step)
        counts.append(len(unique_texts(taxa)[0]))
    return round(float(np.mean(counts)))


def backend(device: torch.device) -> tuple[str, dict[str, str]]:
    """The kernels that will run there, and why the others cannot."""
    reasons = {name: why_not(name, device) for name in BACKENDS}
    best = "triton" if device.type == "cuda" else "cpu"
    return (best if reasons[best] is None else "tiled"), {name: why for name, why in reasons.items() if why}


def device_versions() -> dict[str, str]:
    """Versions of what lies between torch and the GPU, of those that are there."""
    found = {}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    with suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    return found


# -- machines ----------------------------------------------------------------------------------------------


def find_hosts() -> list[dict[str, Any]]:
    """The machines of the run: processes, GPUs, cores, memory in bytes; all processes call it."""
    here = this_host()
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, here)
    processes = Counter(host["host"] for host in found)
    gpus: dict[str, list[Any]] = {name: [] for name in processes}
    for host in found:
        gpus[host["host"]] += [gpu for gpu in host.pop("gpu") if gpu not in gpus[host["host"]]]
    first = {host["host"]: host for host in reversed(found)}
    return [{**first[name], "processes": count, "gpus": gpus[name]} for name, count in processes.items()]


def this_host() -> dict[str, Any]:
    """What this process sees of its machine, a scheduler's limits included."""
    gpu = []
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu = [{"name": seen.name, "memory": seen.total_memory, "uuid": str(getattr(seen, "uuid", ""))}]
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory_limit(),
        "shared_memory": shared.f_frsize * shared.f_blocks if shared else 0,
        "gpu": gpu,
    }


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process' machine, container or job has: the least of all limits above it."""
    meminfo = (root / "proc/meminfo").read_text()
    limits = [1024 * int(meminfo.split("MemTotal:")[1].split()[0])]
    groups = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        if kind == "":  # version 2: a limit at any level counts
            folder, top, name = groups / path.lstrip("/"), groups, "memory.max"
        elif kind == "memory":
            folder, top, name = groups / "memory" / path.lstrip("/"), groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        levels = [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
        for level in levels:
            try:
                limits.append(int((level / name).read_text()))
            except (OSError, ValueError):  # no limit there, or "max"
                continue
    return min(limits)


# -- for people --------------------------------------------------------------------------------------------


def lines(facts: dict[str, Any]) -> list[str]:
    """The report as aligned lines."""
    v, b = facts["versions"], facts["estimated_bytes"]
    below = ", ".join(f"{name} {v[name]}" for name in ("cuda", "nccl", "triton") if name in v)
    names = [f"{name} {v[name]}" for name in ("bioclip_hc", "python", "torch", "deepspeed", "open_clip")]
    best = "cpu" if facts["device"] == "cpu" else "triton"
    why_not_best = facts["not_backend"].get(best, "")
    micro = f", {facts['micro_batch']:,} at a time" if facts["micro_batch"] else ""
    states = {name: b[name] for name in STATES}
    most = max(host["processes"] for host in facts["hosts"])
    return [
        f"versions   {', '.join(names)}{f' ({below})' if below else ''}",
        *(f"host       {line}" for line in host_lines(facts["hosts"], facts["threads"])),
        f"kernels    {facts['backend']}{f' (not {best}: {why_not_best})' if why_not_best else ''}",
        f"batch      {facts['global_batch']:,} images, {facts['local_batch']:,} a process{micro}; "
        f"about {facts['texts_a_step']:,} texts",
        f"run        {facts['steps']:,} steps, {facts['steps_per_epoch']:,} an epoch{rest(**facts['remainder'])}; "
        f"{facts['samples']:,} samples, {facts['taxa']:,} taxa",
        f"pixels     {facts['decoder']}",
        f"model      {facts['parameters'] / 1e6:,.1f} M parameters, {facts['precision']}, ZeRO stage "
        f"{facts['zero_stage']}",
        f"memory     of a process, estimated, without activations: {size(sum(states.values()))} = "
        + " + ".join(f"{name} {size(n)}" for name, n in states.items() if n),
        f"loader     up to {size(b['loader'])} of images a process, {size(most * b['loader'])} a host, estimated",
    ]


def rest(samples: int, fate: str) -> str:
    """What becomes of the samples of an epoch that do not fill a batch, for people."""
    if not samples:
        return ""
    told = {"drop": f"leaves out {counted(samples, 'sample')}", "pad": f"ends with a batch of {samples:,}"}
    return f", which {told[fate]}"


def host_lines(hosts: list[dict[str, Any]], threads: int) -> list[str]:
    """One line for each kind of machine."""
    kinds: Counter[str] = Counter()
    for host in hosts:
        gpus = Counter(f"{gpu['name']} of {size(gpu['memory'])}" for gpu in host["gpus"])
        devices = ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "no GPU"
        kinds[
            f"{counted(host['processes'], 'process', 'es')} of {counted(threads, 'thread')}, {devices}, "
            f"{counted(host['cores'], 'core')}, "
            f"{size(host['memory'])}"
        ] += 1
    return [f"{count} x ({kind})" if count > 1 else kind for kind, count in kinds.items()]


def warnings(facts: dict[str, Any]) -> list[str]:
    """What on this list will not go well, with the key to turn."""
    found, b = [], facts["estimated_bytes"]
    for host in facts["hosts"]:
        needs = host["processes"] * b["loader"]
        for key, what in (("memory", "memory"), ("shared_memory", "/dev/shm")):
            if 0 < host[key] < needs:
                found.append(
                    f"the loaders of {host['host']} may hold {size(needs)} of images, it has {size(host[key])} of "
                    f"{what}; lower data.workers"
                )
                break
        states = sum(b[name] for name in STATES)
        for gpu in host["gpus"]:
            if states > gpu["memory"]:
                found.append(
                    f"a process needs {size(states)} before any activation, {gpu['name']} has "
                    f"{size(gpu['memory'])}; raise run.zero_stage, or use 16 bit"
                )
                break
    return found


def unusable(bad: Sequence[BadSample]) -> list[str]:
    """What the shards hold that training will never meet: a sentence on all of it, and one on each cause of it."""
    if not bad:
        return []
    cut = [sample for sample in bad if not sample.key]
    shards = len({sample.shard for sample in cut})
    lost = f"{counted(shards, 'damaged shard')}, read around the damage; " if cut else ""
    found = [
        f"{counted(len(bad), 'unusable place')} in the shards (quarantine-index.jsonl); {lost}the first: "
        f"{_place((cut or list(bad))[0])}"
    ]
    causes = list(by_cause(bad).items())
    for why, samples in causes[:CAUSES] if len(causes) > 1 else []:
        found.append(f"{len(samples):,} unusable: {why}; the first: {_place(samples[0])}")
    if len(causes) > CAUSES:
        rest = sum(len(samples) for _, samples in causes[CAUSES:])
        found.append(f"{rest:,} unusable for {counted(len(causes) - CAUSES, 'other reason')}")
    return found


def _place(sample: BadSample) -> str:
    """Where it is, and why it cannot be used."""
    return f"{sample.shard}{f', {sample.key!r}' if sample.key else ''}: {sample.reason}"


def counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def size(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit / 10:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1024:.1f} KiB"
