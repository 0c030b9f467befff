"""How far a long command is, for people."""

from __future__ import annotations

import sys
import time


class Progress:
    """One line on the terminal that says how far a long command is; none where stderr goes elsewhere."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self.begun = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: float, more: str = "") -> None:
        now = time.monotonic()
        if self.live and now > self.shown + 0.5:
            self.shown = now
            left = (self.total - done) * (now - self.begun) / max(done, 1e-3)
            text = f"{done:.0f} of {self.total} {self.unit}{more}, about {left:.0f} s left"
            print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *exc: object) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
