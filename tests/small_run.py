"""Trainings small enough to run dozens of them: pictures, shards, a model, and a server that forks train.py.

Starting Python, torch and DeepSpeed takes seconds, the training itself one. So a server imports `train` once, and
every run is a fork of it: its own process with its own arguments, environment, signals and exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LINEAGES = [
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "merula"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Corvidae", "Corvus", "corax"),
    ("Animalia", "Chordata", "Mammalia", "Carnivora", "Canidae", "Vulpes", "vulpes"),
    ("Plantae", "Tracheophyta", "Magnoliopsida", "", "Rosaceae", "Rosa", "canina"),  # no order
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "", "", ""),  # known down to its order
]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 32}
ARCHITECTURES = {
    "tiny": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny_dropout": {"embed_dim": 16, "vision_cfg": VIT | {"patch_dropout": 0.5}, "text_cfg": TEXT},
    "tiny_resnet": {
        "embed_dim": 16,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
        "text_cfg": TEXT,
    },
}
CONFIG = """
[data]
workers = 0
[model]
architecture = "tiny.json"
[optim]
lr = 1e-3
warmup = 3
global_batch = 12
epochs = 3
[run]
threads = 1
log_every = 1
save_every = 4
"""  # 48 pictures: 4 steps an epoch, 12 in all


def picture(seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """A JPEG of blotches, by default a small one."""
    blotches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blotches).resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_pictures(folder: Path, count: int = 48, broken: range = range(0)) -> Path:
    """Shards of pictures, taxa in turn; those of `broken` begin as JPEG and end too soon."""
    from bioclip_hc.data.sample import Sample
    from bioclip_hc.data.writer import write_shards

    images = (picture(i)[: 60 if i in broken else None] for i in range(count))
    samples = (Sample(f"photo{i:04d}", image, LINEAGES[i % len(LINEAGES)]) for i, image in enumerate(images))
    write_shards(samples, folder, samples_per_shard=20)
    return folder


def write_setup(folder: Path) -> Path:
    """A folder with shards/, the architectures and run.toml; returns it."""
    write_pictures(folder / "shards")
    for name, architecture in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(architecture))
    (folder / "run.toml").write_text(CONFIG)
    return folder


def arguments(setup: Path, output: Path, *more: str) -> list[str]:
    """What follows `train.py` on the command line."""
    own = ["--data.train", str(setup / "shards"), "--run.output", str(output)]
    return [str(setup / "run.toml"), *own, *map(str, more)]


def environment(**more: str) -> dict[str, str]:
    """This environment, one thread a process, the package found without being installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class Run:
    """One training process."""

    def __init__(self, server: Server, pid: int, terminal: Path) -> None:
        self.server, self.pid, self._terminal = server, pid, terminal

    def wait(self, seconds: float = 60) -> int:
        """Its exit code, -N if signal N killed it."""
        code = self.ended(seconds)
        assert code is not None, f"still running after {seconds} s:\n{self.printed}"
        return code

    def ended(self, seconds: float) -> int | None:
        """The same if it ends in that time, else None."""
        return self.server.ask(wait=self.pid, seconds=seconds)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def printed(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._terminal.read_text()


class Server:
    """Forks train.py on request; `script` is a file that calls `serve`."""

    def __init__(self, script: str = __file__) -> None:
        command = [sys.executable, script]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        )
        atexit.register(self._process.stdin.close)

    def ask(self, **request: object) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, arguments: list[str], terminal: Path, **env: str) -> Run:
        return Run(self, self.ask(start=arguments, terminal=str(terminal), env=env), terminal)


@functools.cache
def server() -> Server:
    """The one of this test process."""
    return Server()


def start(setup: Path, output: Path, *more: str, **env: str) -> Run:
    """Start `train.py run.toml --run.output OUTPUT ...` in the background."""
    terminal = output.parent / f"{output.name}.{time.monotonic_ns()}.terminal"
    return server().start(arguments(setup, output, *more), terminal, **env)


def start_together(setup: Path, output: Path, count: int, *more: str, **env: str) -> list[Run]:
    """The same as `count` processes, as a launcher starts them but with none to end what is left of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **env}
    return [start(setup, output, *more, **place, RANK=str(i), LOCAL_RANK=str(i)) for i in range(count)]


def finish_together(setup: Path, output: Path, count: int, *more: str, code: int = 0, **env: str) -> list[str]:
    """Run them to their end, which must bear the exit code; returns what each printed."""
    runs = start_together(setup, output, count, *more, **env)
    ended = [run.wait(150) for run in runs]
    printed = [run.printed for run in runs]
    assert ended == [code] * count, f"ended with {ended}, not {code}:\n" + "\n".join(printed)
    return printed


def finish(setup: Path, output: Path, *more: str, code: int = 0, **env: str) -> str:
    """Run it to its end, which must bear the exit code; returns what it printed."""
    run = start(setup, output, *more, **env)
    ended = run.wait()
    assert ended == code, f"ended with {ended}, not {code}:\n{run.printed}"
    return run.printed


def wait_for_step(output: Path, step: int, seconds: float = 30) -> None:
    """Until a run has logged a step."""
    log, end = output / "log.jsonl", time.monotonic() + seconds
    while not (log.is_file() and f'"step": {step},' in log.read_text()):
        assert time.monotonic() < end, f"{log} does not come to step {step}"
        time.sleep(0.005)


def serve(main: Callable[[list[str]], int] | None = None) -> None:
    """Answer requests on stdin until it closes; a fork runs `main`, by default that of train.py."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what imports print is no answer
    sys.path.insert(0, str(ROOT / "train"))
    import deepspeed  # imported here so that the forks need not
    import torch
    import tyro  # noqa: F401

    with contextlib.suppress(ImportError, AttributeError):  # initialize() would do these: half of a run's time
        import deepspeed.runtime.zero.muon.original_muon

        deepspeed.ops.__compatible_ops__  # noqa: B018  looked up at first use, with a compiler

    import train

    torch.set_num_threads(1)
    children = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                run_forked(main or train.main, request)
            children.add(pid)
            answer = pid
        else:
            answer = reap(request["wait"], request["seconds"])
            if answer is not None:
                children.discard(request["wait"])
        os.write(answers, (json.dumps(answer) + "\n").encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def run_forked(main: Callable[[list[str]], int], request: dict) -> None:
    """Be `python train/train.py ...`; never returns."""
    code = 1
    try:
        terminal = os.open(request["terminal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(terminal, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["env"])
        if before := request["env"].get("BEFORE_TRAINING"):  # module:function of tests/, which may break things
            module, function = before.split(":")
            getattr(importlib.import_module(module), function)()
        code = main(request["start"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap(pid: int, seconds: float) -> int | None:
    """The exit code of a child, or None if it has not ended in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


if __name__ == "__main__":
    serve()
