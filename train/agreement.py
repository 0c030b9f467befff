"""What all processes succeed in or fail in together, so that none goes on alone into a collective and waits."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class FailedTogether(OSError):
    """Something failed on at least one process; raised on every process, with every process' reason."""


def on_all(what: str, action: Callable[[], T]) -> list[T]:
    """Run `action` on every process; all call it, and all get every process' result, in order.

    `action` must hold no collective, for a process that fails in it would leave the others waiting.

    Args:
        what: what could not be done if it fails, the start of the error.

    Raises:
        FailedTogether: on all processes, if `action` raised on any.
    """
    result, problem = None, ""
    try:
        result = action()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
    if not dist.is_initialized():
        everyone: list[Any] = [(result, problem, "")]
    else:
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (result, problem, socket.gethostname()))
    failed = [(rank, host, said) for rank, (_, said, host) in enumerate(everyone) if said]
    if failed:
        where = "; ".join(f"process {rank} on {host}: {said}" for rank, host, said in failed[:4])
        more = f"; and on {len(failed) - 4} more processes" if len(failed) > 4 else ""
        raise FailedTogether(f"{what}: {where}{more}")
    return [result for result, _, _ in everyone]


def on_first(what: str, action: Callable[[], T]) -> T:
    """Run `action` on the first process only; every process gets its result, or FailedTogether."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    return on_all(what, lambda: action() if first else None)[0]  # type: ignore[return-value]


def need_alike(facts: dict[str, Any]) -> None:
    """Facts by name, JSON types, that all processes must have alike; all call it.

    Raises:
        ValueError: on all processes, naming what differs.
    """
    prints = {
        name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest() for name, fact in facts.items()
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (prints, socket.gethostname()))
    first, first_host = everyone[0]
    for rank, (found, host) in enumerate(everyone):
        unlike = [name for name in first if found[name] != first[name]]
        if unlike:
            raise ValueError(
                f"process {rank} on {host} has other {', '.join(unlike)} than process 0 on {first_host}; start all "
                "with the same configuration and the same data"
            )


def from_first(action: Callable[[], T]) -> T:
    """What `action` gives on the first process, or the very error that it raises there, on every process."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [action(), None]
        except Exception as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
