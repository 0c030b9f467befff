"""A scheduler of one job, which behaves as Slurm documents it, for a script that sbatch would take.

`sbatch` copies the script aside and runs it with the job's variables; the commands that the script calls (srun,
scontrol) are stubs that hand the call to this process and wait for its answer. srun starts the tasks as forks of a
server that has imported train.py, each in a process group of its own. What is copied of Slurm's manual pages:

    srun(1)       the highest exit code of all tasks is returned, 128 + N for one that signal N killed;
                  --kill-on-bad-exit=1: when a task ends with another code than 0 the others are ended, by SIGCONT
                  and SIGTERM, and by SIGKILL after KillWait
    sbatch(1)     --signal reaches the job's steps, not the batch script
    slurm.conf(5) GraceTime: a preempted job gets SIGCONT and SIGTERM at once
    scontrol(1)   requeue ends the batch script and runs it again, with SLURM_RESTART_COUNT one higher
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from small_run import ROOT, Run, Server, environment, serve

KILL_WAIT = 30  # seconds, Slurm's default
STUB = """#!/bin/sh
call=$(mktemp -d "$SLURM_STUBS/call-XXXXXX")
printf '%s\\0' "${0##*/}" "$@" > "$call/words"
env -0 > "$call/environment"
pwd > "$call/folder"
touch "$call/ready"
until [ -e "$call/code" ]; do sleep 0.05; done
cat "$call/printed"
exit "$(cat "$call/code")"
"""


@functools.cache
def node() -> Server:
    """What slurmd is on a node: it starts tasks."""
    return Server(__file__)


class Job:
    """One batch job.

    Args:
        folder: a folder of the job's own.
        submitted_from: the working directory of `sbatch` and of all tasks.
        script, arguments: as on sbatch's command line.
        hold: steps after which the training waits to be signalled: one for each start of the job.

    Attributes:
        requeued: how often scontrol requeue was called.
        tasks: those of the current step.
        sruns: the words of every call of srun.
    """

    def __init__(
        self, folder: Path, submitted_from: Path, script: Path, *arguments: str, hold: tuple[int, ...] = ()
    ) -> None:
        self.folder, self.submitted_from = folder, submitted_from
        self.arguments = [str(word) for word in arguments]
        self.script = folder / "slurm_script"  # sbatch runs a copy
        shutil.copy(script, self.script)
        options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))
        self.options = options
        self.per_node = int(options["ntasks-per-node"])
        self.count = int(options["nodes"]) * self.per_node
        self.hold = hold
        self.requeued = 0
        self.state = "PENDING"
        self.tasks: list[Run] = []
        self.codes: list[int | None] = []
        self.sruns: list[list[str]] = []
        self.number = str(os.getpid() + (1 << 20))
        for name in ("srun", "scontrol"):
            (folder / name).write_text(STUB)
            (folder / name).chmod(0o755)
        self._srun: Path | None = None
        self._kill_on_bad_exit = False
        self._deadline = float("inf")

    def run(self, each: Callable[[Job], object] = lambda job: None, seconds: float = 120) -> int:
        """Run to its end, requeues included, calling `each` all the time; returns the batch script's exit code."""
        end = time.monotonic() + seconds
        while True:
            before = self.requeued
            batch = self._start_batch()
            try:
                while batch.poll() is None and self.requeued == before:
                    assert time.monotonic() < end, f"the job still runs after {seconds} s:\n{self.printed}"
                    for call in sorted(self.folder.glob("call-*/ready")):
                        self._answer(call.parent)
                    self._watch_tasks()
                    each(self)
                    time.sleep(0.005)
            finally:
                if batch.poll() is None:
                    os.killpg(batch.pid, signal.SIGKILL)
                    batch.wait()
                self.signal(signal.SIGKILL)
            if self.requeued == before:
                self.state = "COMPLETED" if batch.returncode == 0 else "FAILED"
                return batch.returncode

    def signal(self, *numbers: int, everyone: bool = True) -> None:
        """Send signals to the tasks of the step that still run; to all their processes, or to the first alone."""
        for task, code in zip(self.tasks, self.codes, strict=True):
            for number in numbers:
                if code is None:
                    (os.killpg if everyone else os.kill)(task.pid, number)

    @property
    def printed(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.terminal")))

    def _start_batch(self) -> subprocess.Popen[bytes]:
        job = {
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NODELIST": "localhost,127.0.0.1",
            "SLURM_NTASKS": str(self.count),
            "SLURM_CPUS_PER_TASK": self.options["cpus-per-task"],
            "SLURM_SUBMIT_DIR": str(self.submitted_from),
            "SLURM_PROCID": "0",  # of the batch step
            "SLURM_LOCALID": "0",
            "SLURM_STUBS": str(self.folder),
            "HOLD_AT": str(dict(enumerate(self.hold)).get(self.requeued, 0)),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }
        if self.requeued:
            job["SLURM_RESTART_COUNT"] = str(self.requeued)
        self.state = "RUNNING"
        with (self.folder / "batch.terminal").open("ab") as terminal:
            return subprocess.Popen(
                ["bash", str(self.script), *self.arguments],
                cwd=self.submitted_from,
                env=environment(**job),
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
            )

    def _answer(self, call: Path) -> None:
        """Answer a stub, or begin the step that it asks for."""
        (call / "ready").unlink()
        words = (call / "words").read_text().split("\0")[:-1]
        if words[0] == "srun":
            self._begin_step(call, words)
        elif words[:3] == ["scontrol", "show", "hostnames"]:
            _end(call, 0, words[3].replace(",", "\n") + "\n")
        elif words[:3] == ["scontrol", "show", "job"]:
            _end(call, 0, f"JobId={self.number} JobName=bioclip_hc\n   JobState={self.state} Reason=None\n")
        elif words == ["scontrol", "requeue", self.number]:
            self.requeued += 1
            _end(call, 0)
        else:
            _end(call, 1, f"stub: {words}\n")

    def _begin_step(self, call: Path, words: list[str]) -> None:
        self.sruns.append(words)
        options = [word for word in words[1:] if word.startswith("--")][: words.index("python") - 1]
        command = words[words.index("python") + 1 :]
        assert os.path.samefile(self.submitted_from / command[0], ROOT / "train" / "launch" / "task.py")
        self._kill_on_bad_exit = "--kill-on-bad-exit=1" in options
        said = dict(item.split("=", 1) for item in (call / "environment").read_text().split("\0")[:-1])
        self.tasks = []
        for i in range(self.count):
            place = {
                "SLURM_PROCID": str(i),
                "SLURM_LOCALID": str(i % self.per_node),
                "SLURM_NODEID": str(i // self.per_node),
                "SLURM_NTASKS": str(self.count),
                "SLURM_STEP_NUM_TASKS": str(self.count),
                "SLURM_STEP_NODELIST": said["SLURM_JOB_NODELIST"],
                "TASK_FOLDER": (call / "folder").read_text().strip(),
            }
            terminal = self.folder / f"step{len(self.sruns)}-task{i}.terminal"
            self.tasks.append(node().start(command[1:], terminal, **{**said, **place}))
        self.codes = [None] * self.count
        self._srun, self._deadline = call, float("inf")

    def _watch_tasks(self) -> None:
        if self._srun is None:
            return
        for i, task in enumerate(self.tasks):
            if self.codes[i] is None:
                self.codes[i] = task.server.ask(wait=task.pid, seconds=0.001)
                if self.codes[i] not in (None, 0) and self._kill_on_bad_exit and self._deadline == float("inf"):
                    self.signal(signal.SIGCONT, signal.SIGTERM)
                    self._deadline = time.monotonic() + KILL_WAIT
        if time.monotonic() > self._deadline:
            self.signal(signal.SIGKILL)
        if None not in self.codes:
            _end(self._srun, max(code if code >= 0 else 128 - code for code in self.codes))
            self._srun = None


def _end(call: Path, code: int, printed: str = "") -> None:
    (call / "printed").write_text(printed)
    (call / ".code").write_text(str(code))
    (call / ".code").rename(call / "code")


def task(arguments: list[str]) -> int:
    """What srun starts: a process group of its own, in the step's working directory."""
    sys.path.insert(0, str(ROOT / "train" / "launch"))
    import task

    os.setsid()
    os.chdir(os.environ["TASK_FOLDER"])
    if step := int(os.environ["HOLD_AT"]):
        hold_at(step)
    return task.main(arguments)


def hold_at(step: int) -> None:
    """Let the training wait after a step until it is signalled, so that no test depends on being quick."""
    import train

    advance = train.Training.advance

    def held(run, batch):
        output = advance(run, batch)
        end = time.monotonic() + 60
        while run.step == step and not run.stop_signal and time.monotonic() < end:
            time.sleep(0.01)
        return output

    train.Training.advance = held


if __name__ == "__main__":
    serve(task)
