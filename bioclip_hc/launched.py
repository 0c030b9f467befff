"""Which process of how many this is, as whatever launched it says: torchrun, deepspeed, srun."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
from collections.abc import Mapping

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torch.distributed's names
SIOCGIFADDR = 0x8915  # netdevice(7)


def launched(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What torch.distributed wants to know and the environment does not say yet; None: nothing launched this.

    torchrun and deepspeed say it all. A task of srun finds it in Slurm's variables, unless WORLD_SIZE is set.

    Raises:
        ValueError: a launcher that says a part only, or Slurm's nodes cannot be told.
    """
    if "RANK" in environment:
        missing = [name for name in PLACE if name not in environment]
        if missing:
            raise ValueError(f"RANK is set, but not {', '.join(missing)}; set them too, or start with torchrun")
        return {}
    if "WORLD_SIZE" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _task_of_srun(environment)
    return None


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
