"""One evaluation by several processes: who does what, and what they tell the first.

# W processes

They are started by torchrun, deepspeed or srun, or by the command itself, which starts itself W - 1 times more.
Whoever loses another ends with an error; of what they had done, the cache of embeddings keeps all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from bioclip_hc.data.parallel import usable_processes
from bioclip_hc.launched import interface, launched

PATIENCE = timedelta(days=2)  # for the slowest; one that ends, however it ends, is known at once
STARTED_BY = "BIOCLIP_HC_STARTED_BY"  # of a process that another has started: its parent's id
HERE = "here"  # in the store: how many of those that were started have come so far
PR_SET_PDEATHSIG = 1  # prctl(2)


class World:
    """A process among W that do one work together; by itself the only one.

    Attributes:
        rank: which, from 0; size: W.
    """

    def __init__(self, rank: int = 0, size: int = 1, helpers: Sequence[Helper] = ()) -> None:
        self.rank, self.size, self._helpers = rank, size, helpers

    @property
    def first(self) -> bool:
        """Whether this is the one that tells people of the result."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in order, for the first process; nothing for the others. All call it."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        with self._others():
            dist.gather_object(value, values)
        return values or []

    def from_first(self, value: Any) -> Any:
        """The first process' value, for all; all call it."""
        if self.size == 1:
            return value
        values = [value]
        with self._others():
            dist.broadcast_object_list(values)
        return values[0]

    def check(self) -> None:
        """Whether all those that this process has started are at work or have done theirs.

        Raises:
            OSError: one has ended before.
        """
        for helper in self._helpers:
            if helper.process.poll():
                raise OSError(helper.obituary(self.size))

    @contextmanager
    def _others(self) -> Iterator[None]:
        """Where another process may be found to be gone."""
        try:
            yield
        except RuntimeError as error:
            end = time.monotonic() + 5  # until it shows which: its connection ends before it does
            while self._helpers and time.monotonic() < end:
                self.check()
                time.sleep(0.05)
            raise OSError(
                f"process {self.rank} of {self.size} has lost another ({str(error).splitlines()[0]}); what that "
                "one said last tells why. Embeddings done so far are kept: run again to go on"
            ) from None


class Helper:
    """A process that this one has started, and what it says."""

    def __init__(self, rank: int, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.rank = rank
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        command = [sys.executable, "-m", "bioclip_hc.cli", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said, env=environment
        )

    def obituary(self, size: int) -> str:
        """How it ended, and its last words."""
        code = self.process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        words = f": {said[-1].removeprefix('bioclip-hc: ')}" if said else ""
        return (
            f"process {self.rank} of {size} {how}{words}; all have ended. Embeddings done so far are kept: "
            "run again to go on"
        )

    def end(self, patience: float) -> None:
        """Let it end, or end it."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._said.close()


@contextmanager
def processes(count: int | None, arguments: Sequence[str]) -> Iterator[World]:
    """All processes of this command.

    Args:
        count: how many to be, all on this host; None: as many as a launcher has started, or one.
        arguments: of the command line, for those that this process starts.

    Raises:
        ValueError: a count below 1, or one where a launcher has started another number.
        OSError: the processes do not reach each other.
    """
    if count is not None and count < 1:
        raise ValueError(f"--processes must be at least 1, got {count}")
    place = launched(os.environ)
    if place is not None:
        os.environ.update(place)
        size = int(os.environ["WORLD_SIZE"])
        if count not in (None, size):
            raise ValueError(f"--processes {count}, but a launcher has started {size}; leave --processes out")
        rank, store = int(os.environ["RANK"]), None
        if STARTED_BY in os.environ:
            _end_with_parent(int(os.environ[STARTED_BY]))
            store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
            store.add(HERE, 1)
        with _joined(rank, size, store) as world:
            yield world
    elif count is None or count == 1:
        yield World()
    else:
        with _started(count, arguments) as world:
            yield world


@contextmanager
def _started(count: int, arguments: Sequence[str]) -> Iterator[World]:
    """This process as the first of `count`, which it starts; their threads share its cores."""
    threads = max(1, usable_processes() // count)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    known = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        ),
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        STARTED_BY: str(os.getpid()),
    }
    helpers: list[Helper] = []
    patience = 0.0
    try:
        for rank in range(1, count):
            helpers.append(Helper(rank, arguments, {**known, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        while store.add(HERE, 0) < count - 1:  # for the group waits, whoever is dead
            World(0, count, helpers).check()
            time.sleep(0.02)
        with _joined(0, count, store, helpers) as world:
            yield world
            patience = 30.0
    finally:
        for helper in helpers:
            helper.end(patience)


@contextmanager
def _joined(rank: int, size: int, store: dist.Store | None, helpers: Sequence[Helper] = ()) -> Iterator[World]:
    """The process group, by a store that is there already or by the environment."""
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo"} if store else interface(os.environ))
    world = World(rank, size, helpers)
    try:
        if store is None:
            dist.init_process_group("gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except RuntimeError as error:
        world.check()
        raise OSError(
            f"process {rank} of {size} does not reach the others ({str(error).splitlines()[0]}); name the network "
            "interface that joins the hosts in GLOO_SOCKET_IFNAME, on every host"
        ) from error
    try:
        yield world
    finally:
        dist.destroy_process_group()
        if store is not None and before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]


def _end_with_parent(parent: int) -> None:
    """A process that another has started ends when that one does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first, which ends the others
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def own_device(name: str | None, world: World) -> str:
    """Where this process computes: the device that was named, or else one GPU for each process of a host."""
    if name is not None or not torch.cuda.is_available():
        return name or "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if world.size > 1 else "cuda"
