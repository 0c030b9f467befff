"""Which process of how many this is, as whatever launched it says, and torch.distributed around a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from bioclip_hc.launched import PLACE, interface, launched


@contextmanager
def world(threads: int) -> Iterator[None]:
    """The process group of the run; `threads` for one process on the CPU, 0 leaves torch's choice.

    Raises:
        ValueError: see `place`; more processes than GPUs on this host.
        OSError: the processes do not reach each other.
    """
    os.environ.update(place(os.environ))
    os.environ.update(interface(os.environ))
    gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    if gpu:
        count = torch.cuda.device_count()
        if count == 1:  # a scheduler may show every process its own GPU alone
            os.environ["LOCAL_RANK"] = "0"
        if int(os.environ["LOCAL_RANK"]) >= count:
            raise ValueError(
                f"process {os.environ['RANK']} is number {os.environ['LOCAL_RANK']} on its host, from 0, and sees "
                f"{count} GPUs; start one process for each GPU"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if threads:
        torch.set_num_threads(threads)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    except RuntimeError as error:
        name = os.environ.get("GLOO_SOCKET_IFNAME")
        raise OSError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} does not reach the others "
            f"({str(error).splitlines()[0]}), process 0 being at {os.environ['MASTER_ADDR']}; name the network "
            "interface that joins the hosts in GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for GPUs), on every host, "
            f"which {f'is {name}' if name else 'is not set'} here"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def place(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed wants to know and the environment does not say yet, see `launched`.

    Without a launcher this is a world of one.

    Raises:
        ValueError: one of several processes that know nothing of each other, with the way to start them.
    """
    found = launched(environment)
    if found is not None:
        return found
    if "WORLD_SIZE" not in environment:
        _one_on_purpose(environment)
    elif environment["WORLD_SIZE"] != "1":
        raise ValueError(f"WORLD_SIZE is {environment['WORLD_SIZE']}, but RANK is not set; start with torchrun")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return dict(zip(PLACE, ("0", "1", "0", "127.0.0.1", str(port)), strict=True))


def _one_on_purpose(environment: Mapping[str, str]) -> None:
    """Refuse a world of one where several were to be started.

    Raises:
        ValueError: with the way to start them.
    """
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1:
        raise ValueError(
            f"this Slurm job has {tasks} tasks, but train.py was started without srun and would train alone; start "
            "it by `srun python train/train.py ...` (train/launch/two_nodes.slurm does), or for one process set "
            "WORLD_SIZE=1"
        )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(environment.get(name, 1)) > 1:
            raise ValueError(
                f"MPI started {environment[name]} processes ({name}), but RANK is not set and each would train "
                "alone; start them with torchrun, deepspeed or srun"
            )
