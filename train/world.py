"""Which process of how many this is, as whatever launched it says, and torch.distributed around a run."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torch.distributed's names
SIOCGIFADDR = 0x8915  # netdevice(7)


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
    """What torch.distributed wants to know and the environment does not say yet.

    torchrun and deepspeed say it all. A task of srun finds it in Slurm's variables. Without a launcher this is a
    world of one.

    Raises:
        ValueError: one of several processes that know nothing of each other, with the way to start them.
    """
    if "RANK" in environment:
        missing = [name for name in PLACE if name not in environment]
        if missing:
            raise ValueError(f"RANK is set, but not {', '.join(missing)}; set them too, or start with torchrun")
        return {}
    if "WORLD_SIZE" not in environment:
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return _task_of_srun(environment)
        _one_on_purpose(environment)
    elif environment["WORLD_SIZE"] != "1":
        raise ValueError(f"WORLD_SIZE is {environment['WORLD_SIZE']}, but RANK is not set; start with torchrun")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return dict(zip(PLACE, ("0", "1", "0", "127.0.0.1", str(port)), strict=True))


def _task_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """A task's place in its job step. Tasks are told no port: the job's number gives one that they agree on."""
    host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    port = environment.get("MASTER_PORT") or str(15000 + int(environment["SLURM_JOB_ID"]) % 16000)
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return dict(zip(PLACE, (*(environment[name] for name in names), host, port), strict=True))


def _first_host(nodes: str) -> str:
    """The first of Slurm's compressed list of nodes, such as gpu[03-04]."""
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
        ).stdout.split()
        return listed[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise ValueError(
            f"cannot ask scontrol for the first node of {nodes} ({error}); set MASTER_ADDR to its name"
        ) from None


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


def interface(environment: Mapping[str, str]) -> dict[str, str]:
    """The network interface on which this host and that of the first process meet, for gloo.

    Left alone gloo takes the address that the host's own name resolves to, often the loopback, at which no other
    host finds it. Nothing to say where all are on one host, or without an IPv4 address.
    """
    if "GLOO_SOCKET_IFNAME" in environment:
        return {}
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((environment["MASTER_ADDR"], int(environment["MASTER_PORT"])))  # sends nothing
            own = probe.getsockname()[0]
        names = [name for _, name in socket.if_nameindex() if _address_of(name) == own]
    except OSError:
        return {}
    return {"GLOO_SOCKET_IFNAME": names[0]} if names and not own.startswith("127.") else {}


def _address_of(interface: str) -> str:
    """Its IPv4 address, "" if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            found = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:
            return ""
    return socket.inet_ntoa(found[20:24])
