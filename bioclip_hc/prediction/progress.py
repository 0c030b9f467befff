"""How far it is, for who watches a terminal; and what to say beside it."""

from __future__ import annotations

import sys
from typing import Any

from bioclip_hc.data.captions import printable


class Progress:
    """A bar on standard error where that is a terminal and results do not go to one; messages above it.

    Args:
        results_shown: whether results appear on a terminal, where they are progress enough.
        total: how many images there are; None where that is not known.
    """

    def __init__(self, results_shown: bool, total: int | None = None) -> None:
        self._bar: Any = None
        self.left_out = 0
        if sys.stderr.isatty() and not results_shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" images", file=sys.stderr, dynamic_ncols=True)

    def advance(self) -> None:
        """One image is done."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, message: str) -> None:
        """A line that obeys nothing that is in the message."""
        line = "\n".join(map(printable, f"bioclip-hc: {message}".split("\n")))
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def leave_out(self, name: str, error: Exception) -> None:
        """An image that cannot be read."""
        from bioclip_hc.prediction.reading import reason

        self.left_out += 1
        self.advance()
        shown = printable(name.replace("\n", "\\n"))
        line = f"left out {shown}: {printable(reason(error))}"
        self.tell(line)

    def close(self) -> None:
        """The bar's last state stays."""
        if self._bar is not None:
            self._bar.close()
