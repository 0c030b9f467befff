"""What all rows of the table share: lanes that run trainings with faults, their references, and bits compared.

A lane is one thread of the runner with a server of its own. A world is one training run of one or more processes,
forked from that server, with the lane in the part of the launcher. A reference is the uninterrupted run that an
interrupted one of the same options must equal bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from small_run import Server, arguments, write_setup

import checkpoint
from journal import read_log

LONG = 180.0  # seconds that nothing takes, on the slowest machine
STEPS = 12  # of small_run's configuration
OPTIONS = ("--model.architecture", "tiny_dropout.json")  # its forward pass draws, so random states matter
NUMBERS = ("step", "epoch", "loss", "per_rank", "floor", "lr", "scalars", "used", "quarantined", "order")


@dataclasses.dataclass(frozen=True)
class Case:
    """Faults to inject, by a name that repeats them."""

    name: str
    kind: str
    """Cases of a kind are counted together."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def random(self) -> random.Random:
        """Draws that depend on the name only."""
        return random.Random(self.name)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    injected: int = 1
    survived: int = 1
    note: str = ""
    """Of a miss: what happened instead. Of a case that could not be tried (injected = 0): why."""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


class Missed(AssertionError):
    """A promise was not kept; the message says how, `figures` are added to the row's."""

    def __init__(self, message: str, **figures: Any) -> None:
        super().__init__(message)
        self.figures = figures


def need(condition: object, message: str) -> None:
    """Raises Missed with the message unless the condition holds."""
    if not condition:
        raise Missed(message)


class Skip(Exception):
    """A case that cannot be tried here; the message says why."""


class Laboratory:
    """Shards, configuration and references, shared by the lanes; everything lies in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        unmount_below(self.folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.setup = write_setup(self.folder)
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._made: set[str] = set()

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that `make` fills when it is first asked for; other lanes wait for it."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        folder = self.folder / name
        with lock:
            if name not in self._made:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                self._made.add(name)
        return folder

    def reference(self, lane: Lane, *more: str, processes: int = 1) -> Path:
        """The folder of the uninterrupted run of these options."""

        def make(folder: Path) -> None:
            world = World(lane, folder / "run", *more, processes=processes)
            begin = time.monotonic()  # the server has forked, so it has come up
            codes = world.wait()
            need(codes == [0] * processes, f"the uninterrupted run ended with {codes}: {world.printed[-2000:]}")
            (folder / "seconds").write_text(str(time.monotonic() - begin))

        words = (word.strip("-").replace(f"{self.folder}/", "").replace("/", "_") for word in more)
        return self.once("-".join(["reference", str(processes), *words]), make) / "run"

    def seconds(self, reference: Path) -> float:
        """How long it took."""
        return float((reference.parent / "seconds").read_text())


class Lane:
    """One thread's means to run trainings."""

    def __init__(self, laboratory: Laboratory, name: str) -> None:
        self.laboratory, self.name = laboratory, name
        self.server = Server(str(Path(__file__).with_name("server.py")))

    def path(self, case: str) -> Path:
        """Where the files of a case lie."""
        return self.laboratory.folder / case.replace(" ", "-").replace("/", "-").replace(",", "")

    def folder(self, case: str) -> Path:
        """The same, empty."""
        folder = self.path(case)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def call(self, function: str, facts: dict[str, Any], folder: Path, seconds: float = LONG) -> dict[str, Any]:
        """Call "module:function" in a fork with (facts as JSON, path of its answer); returns the answer.

        Raises:
            Missed: it takes longer, or ends without an answer.
        """
        answer, terminal = folder / "answer.json", folder / "terminal"
        fault = json.dumps({"call": function})
        run = self.server.start([json.dumps(facts), str(answer)], terminal, FAULT=fault)
        code = await_ends(self.server, [run.pid], seconds)[0]
        need(code is not None, f"hung: no end after {seconds:.0f} s")
        need(code == 0 and answer.is_file(), f"ended with {code}: {tail(terminal)}")
        return json.loads(answer.read_text())


class World:
    """One run of train.py in `processes` processes; `fault` goes to process `faulty` (None: to all)."""

    def __init__(
        self,
        lane: Lane,
        output: Path,
        *more: str,
        processes: int = 1,
        fault: dict[str, Any] | None = None,
        faulty: int | None = 0,
    ) -> None:
        self.lane, self.output, self.processes = lane, output, processes
        words = arguments(lane.laboratory.setup, output, *OPTIONS, *more)
        self.terminals = [
            output.parent / f"{output.name}.{time.monotonic_ns()}.{rank}.terminal" for rank in range(processes)
        ]
        port = free_port()
        self.pids = []
        for rank, terminal in enumerate(self.terminals):
            env = {"FAULT": json.dumps(fault)} if fault and faulty in (None, rank) else {}
            if processes > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                env |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self.pids.append(lane.server.start(words, terminal, **env).pid)
        self.codes: list[int | None] = [None] * processes

    def send(self, number: int, rank: int) -> None:
        """A signal to one process, if it still runs."""
        if self.codes[rank] is None:
            os.kill(self.pids[rank], number)

    def running(self) -> bool:
        """Whether any process has not ended."""
        self._reap()
        return None in self.codes

    def wait(self, seconds: float = LONG) -> list[int | None]:
        """Exit codes of all, -N for signal N; None and an end by force for those that do not end in time."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.004)
        hung = [rank for rank, code in enumerate(self.codes) if code is None]
        codes = list(self.codes)
        for rank in hung:
            self.send(signal.SIGKILL, rank)
        while hung and self.running():
            time.sleep(0.004)
        return codes

    def wait_for(self, rank: int, seconds: float = LONG) -> int | None:
        """The exit code of one process, None if it does not end in time."""
        return poll(lambda: (self._reap(), self.codes[rank])[1], seconds, every=4e-3)

    def reap_rest(self, seconds: float = 2.0) -> list[int | None]:
        """As a launcher does when a process has died: let the others end, and end by force those that do not."""
        return self.wait(seconds)

    def _reap(self) -> None:
        for rank, code in enumerate(self.codes):
            if code is None:
                self.codes[rank] = self.lane.server.ask(wait=self.pids[rank], seconds=1e-3)

    @property
    def printed(self) -> str:
        """What all processes wrote."""
        return "".join(terminal.read_text() for terminal in self.terminals if terminal.is_file())


def await_ends(server: Server, pids: list[int], seconds: float) -> list[int | None]:
    """Exit codes of forks, None for those ended by force after that time."""
    end, codes = time.monotonic() + seconds, dict.fromkeys(pids)
    while None in codes.values():
        for pid in [pid for pid, code in codes.items() if code is None]:
            codes[pid] = server.ask(wait=pid, seconds=1e-3)
        if time.monotonic() > end:
            late = [pid for pid, code in codes.items() if code is None]
            for pid in late:
                os.kill(pid, signal.SIGKILL)
                server.ask(wait=pid, seconds=10)
            break
        time.sleep(0.004)
    return list(codes.values())


def unmount_below(folder: Path) -> None:
    """Let go of file systems that a run that was cut off left mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = line.split()[1]
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", point], check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path: Path, lines: int = 6) -> str:
    """The last lines of a file."""
    return " / ".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else ""


def poll(condition: Callable[[], Any], seconds: float = LONG, every: float = 5e-4) -> Any:
    """The first true value of the condition, or its last after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(every)
    return value


# -- what a run has to show -------------------------------------------------------------------------------


def events(output: Path, kind: str) -> list[dict[str, Any]]:
    """Events of a kind in a run's log, lines torn by a kill left out."""
    log = output / "log.jsonl"
    found = []
    for line in log.read_text(errors="replace").split("\n") if log.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("event") == kind:
            found.append(record)
    return found


def last_step(output: Path) -> int:
    """The last step in the log, 0 without one."""
    log = output / "log.jsonl"
    return read_log(log)[-1]["step"] if log.is_file() and read_log(log) else 0


def newest_step(output: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    path, _ = checkpoint.newest(output / "checkpoints")
    return int(path.name.removeprefix("step-")) if path else 0


class Resumption:
    """What must hold of a resume, noted before it: it goes on from the newest whole checkpoint, never from zero."""

    def __init__(self, output: Path, damaged: bool = False) -> None:
        self.output = output
        self.best = newest_step(output)
        announced = max((event["step"] for event in events(output, "checkpoint")), default=0)
        self.before = len(events(output, "resume"))
        need(
            damaged or self.best >= announced,
            f"the log announces checkpoint {announced}, the newest whole is {self.best}",
        )

    def check(self) -> None:
        """After the run: its log says where it went on."""
        resumed = [event["step"] for event in events(self.output, "resume")[self.before :]]
        expected = [self.best] if self.best else []
        need(resumed == expected, f"resumed from {resumed}, the newest whole checkpoint was {self.best}")


def finish(lane: Lane, output: Path, *more: str, processes: int = 1, damaged: bool = False) -> str:
    """Resume to the end, which must be reached; returns what was printed.

    `damaged`: checkpoints were harmed since the log announced them.
    """
    noted = Resumption(output, damaged)
    world = World(lane, output, *more, "--resume", processes=processes)
    codes = world.wait()
    need(codes == [0] * processes, f"the resumed run ended with {codes}: {tail(world.terminals[0])}")
    noted.check()
    return world.printed


# -- bits -------------------------------------------------------------------------------------------------


def need_equal(reference: Path, output: Path) -> dict[str, int]:
    """Raises Missed unless two runs came to the same end; returns the differing bits of each part, all 0."""
    bits = differing_bits(reference, output)
    if any(bits.values()):
        raise Missed(f"bits differ: { {k: v for k, v in bits.items() if v} }", bits=sum(bits.values()))
    return bits


def differing_bits(reference: Path, output: Path) -> dict[str, int]:
    """Bits by which the ends of two runs differ: each file of the last checkpoint and of the model, the log."""
    last = f"checkpoints/{checkpoint.complete(reference / 'checkpoints')[-1].name}"
    bits = {}
    for folder in (last, "model"):
        names = {p.name for run in (reference, output) for p in (run / folder).iterdir()}
        for name in sorted(names - {"README.md", "hyperbolic.json"}):  # prose; that of the run's path and time
            bits[f"{folder}/{name}"] = _bits_of_files(reference / folder / name, output / folder / name)
    logs = [list(_log_leaves(run)) for run in (reference, output)]
    bits["log"] = _bits(*logs)
    return bits


def _bits_of_files(a: Path, b: Path) -> int:
    if not (a.is_file() and b.is_file()):
        return 8 * sum(path.stat().st_size for path in (a, b) if path.is_file()) or 1
    if a.read_bytes() == b.read_bytes():
        return 0
    return _bits(*(list(leaves(_content(path))) for path in (a, b)))


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=False, map_location="cpu")  # of a run of our own
        shard = re.match(r"zero_pp_rank_(\d+)_", path.name)
        return _without_padding(content, int(shard[1])) if shard else content
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.name == checkpoint.MANIFEST:
        return json.loads(path.read_text())["facts"]  # checksums of files are the files' business
    return path.read_bytes()


def _without_padding(content: dict[str, Any], rank: int) -> dict[str, Any]:
    """ZeRO-3 pads what does not divide among processes with memory as it finds it: numbers that mean nothing.

    Set to 0 are, of frozen parameters, what lies past their end, and of trained ones, what no gradient ever came to
    (the parameters among those are compared in the model).
    """
    optimizer = content.get("optimizer_state_dict")
    if isinstance(optimizer, dict) and "fp32_flat_groups" in optimizer:
        states = optimizer["optimizer_state_dict"]["state"]
        optimizer["fp32_flat_groups"] = [
            torch.where(states[i]["exp_avg_sq"] == 0, 0.0, group.detach())
            for i, group in enumerate(optimizer["fp32_flat_groups"])
        ]
    for name, fragment in (content.get("frozen_param_fragments") or {}).items():
        left = content["frozen_param_shapes"][name].numel() - rank * fragment.numel()
        fragment.view(-1)[max(0, left) :] = 0
    return content


def _log_leaves(run: Path) -> Iterator[tuple[str, bytes]]:
    for record in read_log(run / "log.jsonl"):
        yield from leaves({key: record.get(key) for key in NUMBERS}, f"step {record['step']}")


def leaves(content: Any, where: str = "") -> Iterator[tuple[str, bytes]]:
    """Every number, text and tensor in nested containers, as (where, bytes)."""
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu().contiguous()
        yield f"{where}:{content.dtype}{list(content.shape)}", content.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(content, dict):
        for key in sorted(content, key=str):
            yield from leaves(content[key], f"{where}/{key}")
    elif isinstance(content, (list, tuple)):
        for i, item in enumerate(content):
            yield from leaves(item, f"{where}/{i}")
    elif isinstance(content, float):
        yield f"{where}:float", np.float64(content).tobytes()
    elif hasattr(content, "__dict__") and not isinstance(content, type):
        yield from leaves(vars(content), f"{where}:{type(content).__name__}")
    else:
        yield f"{where}:{type(content).__name__}", repr(content).encode()


def _bits(a: list[tuple[str, bytes]], b: list[tuple[str, bytes]]) -> int:
    """Bits by which leaves differ; a leaf that only one side has counts whole."""
    first, second = dict(a), dict(b)
    total = 0
    for name in first.keys() | second.keys():
        x, y = first.get(name), second.get(name)
        if x is None or y is None or len(x) != len(y):
            total += 8 * max(len(x or b"."), len(y or b"."))
        elif x != y:
            total += (int.from_bytes(x, "big") ^ int.from_bytes(y, "big")).bit_count()
    return total
