"""One task of a Slurm job: trains in a child, hands signals on to it, and tells a preemption from a failure.

    srun --kill-on-bad-exit=1 python train/launch/task.py CONFIG.toml ...

srun ends with the highest exit code of its tasks. When a task fails, --kill-on-bad-exit ends the others by SIGTERM,
and what dies of SIGTERM counts as 143: the code by which a preempted training asks to be started again. So that a
failure is never taken for a preemption, it ends with 255 here, whatever it was; 0 and 143 stay.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PREEMPTED, FAILED = 143, 255
HANDED_ON = (signal.SIGTERM, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    """Train with these arguments of train.py; returns 0, PREEMPTED or FAILED."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # none may come between the fork and the handlers
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import train

        sys.exit(train.main(arguments))

    def hand_on(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    _, status = os.waitpid(child, 0)
    return verdict(os.waitstatus_to_exitcode(status))


def verdict(code: int) -> int:
    """The task's code for that of the training, -N where signal N killed it."""
    if code == 0:
        return 0
    if code == PREEMPTED or -code in HANDED_ON:  # killed by it: before there was anything to save
        return PREEMPTED
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    print(f"task {os.environ.get('SLURM_PROCID', '?')} on {socket.gethostname()} {how}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
