"""Work on many shards or pictures in several processes, in order and in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # items under way for each process: enough that none waits for a slow one, little to hold


def usable_processes() -> int:
    """As many as this process may run on cores at once."""
    return len(os.sched_getaffinity(0))


def in_order(
    function: Callable[[T], R], items: Iterable[T], processes: int, died: Callable[[T], R] | None = None
) -> Iterator[R]:
    """`function(item)` of every item, in their order, computed a few items ahead in other processes.

    Args:
        function: of a module, for it is sent to processes that are forked from this one.
        processes: 1 works in this process.
        died: what to take for an item that ends the process working on it (a crash in a decoder, the kernel's
            want of memory); such an item is tried once more, alone in a process. By default, an error.

    Raises:
        OSError: a process died, and there is no `died`.
        Whatever the function raises.
    """
    if processes == 1:
        yield from map(function, items)
        return
    items = iter(items)
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = _pool(processes)
    try:
        while True:
            for item in islice(items, AHEAD * processes - len(waiting)):
                waiting.append((item, _submit(pool, function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:  # by this item or by one after it: all under way are lost
                lost = [item, *(other for other, _ in waiting)]
                waiting.clear()
                pool.shutdown(wait=False)
                pool = _pool(processes)
                for each in lost:
                    yield _alone(function, each, died)
            else:
                yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    # forked, for importing torch anew would cost each process seconds
    return ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_begin, initargs=(os.getpid(),)
    )


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        return failed


def _alone(function: Callable[[T], R], item: T, died: Callable[[T], R] | None) -> R:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            if died is None:
                raise OSError(
                    f"the process that worked on {item!r:.200} died; was the machine short of memory?"
                ) from None
            return died(item)


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
