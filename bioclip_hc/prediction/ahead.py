"""A function of many items, computed by threads a little ahead of who asks, in order and in bounded memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # items under way for each thread
PATIENCE = 0.1  # seconds between looks at whether anybody still asks
PAUSE = 0.1  # seconds without a result, of which who asks is told


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R | None, None, None]:
    """`function(item)` of every item, in order, and None wherever the next one does not come for PAUSE seconds.

    Threads, not processes: what takes the time in decoding and resizing lets other threads run.

    Args:
        items: taken by a thread of its own, so that waiting for the next one holds no result back.
        workers: threads; 0 works in this one, item by item, and cannot tell of a pause.

    Raises:
        Whatever the function, or taking an item, raises, in its place.
    """
    if workers == 0:
        yield from map(function, items)
        return
    under_way: queue.Queue[Future[R] | None] = queue.Queue(AHEAD * workers)
    ended = threading.Event()

    def put(future: Future[R] | None) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                under_way.put(future, timeout=PATIENCE)
                return

    def feed() -> None:
        try:
            for item in items:
                if ended.is_set():
                    return
                put(pool.submit(function, item))
        except BaseException as error:  # of the items: it belongs to who asked for them
            failed: Future[R] = Future()
            failed.set_exception(error)
            put(failed)
        put(None)

    with ThreadPoolExecutor(workers, "decode") as pool:
        # a daemon: it may wait for a line of standard input that never comes
        threading.Thread(target=feed, name="inputs", daemon=True).start()
        try:
            while True:
                try:
                    future = under_way.get(timeout=PAUSE)
                except queue.Empty:
                    yield None
                    future = under_way.get()
                if future is None:
                    return
                if not wait([future], PAUSE).done:
                    yield None
                yield future.result()
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
