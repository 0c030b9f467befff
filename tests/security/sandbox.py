"""One attempt in a process of its own, watched by an audit hook.

Python tells an audit hook of every process started, connection opened and file opened for writing, whoever does it;
what is done is therefore seen even where no payload leaves a trace. (Code in C may write without telling: what is
attempted here only reads.)
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request",
}  # fmt: skip
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CANARY = "CANARY"
SECONDS = 120.0
DECLARED = (ValueError, OSError, SystemExit)


@dataclass
class Seen:
    """What came of an attempt."""

    executed: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    end: str = ""
    """"read as data", the declared error's text, "UNDECLARED ..." or "HUNG"."""
    peak: int = 0
    """Bytes of memory beyond what the process had at the start."""

    @property
    def safe(self) -> bool:
        return not (self.executed or self.written or self.end.startswith(("UNDECLARED", "HUNG")))


def attempt(act: Callable[[Path], Any], folder: Path) -> Seen:
    """Call `act(folder)` in a fork, which may write there and nowhere else."""
    folder.mkdir(parents=True)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _child(act, folder, tell)
    os.close(tell)
    end, parts = time.monotonic() + SECONDS, b""
    timer = _kill_after(pid, SECONDS)
    while part := os.read(told, 1 << 16):
        parts += part
    os.close(told)
    timer()
    _, status = os.waitpid(pid, 0)
    if not parts:
        hung = time.monotonic() >= end
        return Seen(end="HUNG" if hung else f"UNDECLARED end of the process: {os.waitstatus_to_exitcode(status)}")
    seen = Seen(**json.loads(parts))
    if (folder / CANARY).exists():
        seen.executed.append("its payload")
    return seen


def _kill_after(pid: int, seconds: float) -> Callable[[], None]:
    import threading

    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    return timer.cancel


def _child(act: Callable[[Path], Any], folder: Path, tell: int) -> None:
    seen = Seen()
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = _reset_peak()
        _watch(seen, os.path.realpath(folder))
        try:
            act(folder)
            seen.end = "read as data"
        except DECLARED as error:
            seen.end = f"{type(error).__name__}: {error}"[:300] or "refused"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            seen.end = f"UNDECLARED {type(error).__name__}: {error}"[:300] + f" at {where.filename}:{where.lineno}"
        seen.peak = max(0, _status("VmHWM") - before)
        os.write(tell, json.dumps(vars(seen)).encode())
    finally:
        os._exit(0)


def _watch(seen: Seen, folder: str) -> None:
    """Note from now on what is run and what is written outside of the folder."""

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not real.startswith(folder) and not real.startswith("/dev/null")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS:
            if event == "ctypes.dlopen" and not str(arguments[0]).startswith(folder):
                return  # a library of this machine's, loaded by a module at its first use
            seen.executed.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES and outside(arguments[0]):
            seen.written.append(str(arguments[0])[:200])
        elif event in CHANGES:
            paths = [one for one in arguments[:2] if isinstance(one, str | bytes | os.PathLike)]
            seen.written += [f"{event} {path!r}" for path in paths[-1:] if outside(path)]

    sys.addaudithook(hook)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_peak() -> int:
    """Let the peak begin anew; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")
