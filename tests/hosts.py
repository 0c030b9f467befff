"""Two hosts on this machine: network namespaces joined by a cable, each with a host name of its own; needs root.

Nothing resolves those names, as on many a cluster nothing sensible does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from small_run import Run, start

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000  # sched.h
INTERFACE = "cable0"  # the same name on both hosts, as on machines of one kind


class Host(NamedTuple):
    """One of the two."""

    name: str
    """Its host name, and that of its namespace."""
    address: str

    def run(self, command: str) -> None:
        """Run a command of `ip` there."""
        _ip(f"-n {self.name} {command}")

    def cut_off(self) -> None:
        """Pull its cable: nothing arrives any more, and no connection hears that it is closed."""
        self.run(f"link set {INTERFACE} down")

    def join(self) -> None:
        """Plug it in."""
        self.run(f"link set {INTERFACE} up")


def why_not() -> str:
    """Why there can be no hosts here, "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (iproute2)"
    try:
        with two_hosts(f"probe{os.getpid()}"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


@contextmanager
def two_hosts(name: str) -> Iterator[tuple[Host, Host]]:
    """Both, until the end of the context. The name must not be in use."""
    hosts = Host(f"{name}-a", "10.77.0.1"), Host(f"{name}-b", "10.77.0.2")
    try:
        for host in hosts:
            _ip(f"netns add {host.name}")
        first, second = hosts
        _ip(f"link add {INTERFACE} netns {first.name} type veth peer name {INTERFACE} netns {second.name}")
        for host in hosts:
            host.run(f"address add {host.address}/24 dev {INTERFACE}")
            host.run("link set lo up")
            host.join()
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


def start_on(hosts: tuple[Host, Host], setup: Path, output: Path, *more: str, **env: str) -> list[Run]:
    """Start train.py as a launcher on each host would, one process a host."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29500", "LOCAL_RANK": "0", **env}
    return [
        start(setup, output, *more, **place, RANK=str(rank), HOST=host.name, BEFORE_TRAINING="hosts:enter")
        for rank, host in enumerate(hosts)
    ]


def enter() -> None:
    """Be on the host that the environment variable HOST names; to be called before any other thread is started."""
    name = os.environ["HOST"]
    with open(f"/run/netns/{name}") as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET) or _libc.unshare(CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")
    socket.sethostname(name)


_libc = ctypes.CDLL(None, use_errno=True)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=True)
