"""Try every hostile input and write docs/security.md: `make security`, or

python tests/security/run.py [--only WORDS ...]         a part, named by words of the mechanism; only printed
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import documents  # noqa: E402
import torch  # noqa: E402

from security import attempts  # noqa: E402
from security.attempts import Attempt  # noqa: E402
from security.sandbox import Seen, attempt  # noqa: E402

BEGIN, END = "<!-- security:begin -->", "<!-- security:end -->"
MIB = 1 << 20


def main() -> int:
    """Returns 1 if anything was executed, written outside, or ended in an error that is not declared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="of mechanisms' names")
    only = parser.parse_args().only
    chosen = [one for one in attempts.all_of_them() if not only or any(word in one.mechanism for word in only)]
    found = try_all(chosen)
    text = page(found)
    print(text)
    if not only:
        documents.update(ROOT / "docs" / "security.md", BEGIN, END, text)
    return int(any(not seen.safe for _, seen in found))


def try_all(chosen: list[Attempt]) -> list[tuple[Attempt, Seen]]:
    """Every attempt in a folder and a process of its own."""
    attempts.prepare(chosen)
    home = Path(tempfile.mkdtemp(prefix="security-"))
    try:
        attempts.create_tiny(home / "model")
        found = []
        for i, one in enumerate(chosen):
            folder = home / f"{i:04d}"
            found.append((one, attempt(one.act, folder)))
            shutil.rmtree(folder, ignore_errors=True)
        return found
    finally:
        shutil.rmtree(home, ignore_errors=True)


def page(found: list[tuple[Attempt, Seen]]) -> str:
    """The tables."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for one, seen in found:
        groups[one.mechanism].append(seen)
    lines = [line(name, seen) for name, seen in groups.items()]
    lines.append(line("all", [seen for _, seen in found]))
    head = ("mechanism", "inputs tried", "executed", "written outside", "refused", "read as data", "other ends")
    parts = [documents.table(head, lines)]
    bombs = [
        (one.name, one.bomb, f"{seen.peak / MIB:,.0f} MiB", "read" if seen.end == "read as data" else "refused")
        for one, seen in found
        if one.bomb
    ]
    if bombs:
        parts.append(documents.table(("bomb", "would unpack to", "peak memory", "verdict"), bombs))
    wrong = [
        f"- {one.mechanism}: {one.name}: {seen.executed + seen.written} {seen.end}"
        for one, seen in found
        if not seen.safe
    ]
    parts += ["Not as promised:\n\n" + "\n".join(wrong)] if wrong else []
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, {os.uname().sysname}"
    parts.append(f"{versions}; {time.strftime('%Y-%m-%d')}; repeat with `make security`.")
    inputs: dict[str, list[str]] = defaultdict(list)
    for one, _ in found:
        inputs[one.mechanism].append(one.name.replace("`", "'").replace("<", "&lt;"))
    parts += ["## Every input", *(f"**{name}.** " + "; ".join(names) + "." for name, names in inputs.items())]
    return "\n\n".join(parts)


def line(name: str, seen: list[Seen]) -> tuple[str, ...]:
    """A row of the table."""
    read = sum(one.end == "read as data" for one in seen)
    other = sum(one.end.startswith(("UNDECLARED", "HUNG")) for one in seen)
    counts = (len(seen), sum(bool(one.executed) for one in seen), sum(bool(one.written) for one in seen),
              len(seen) - read - other, read, other)  # fmt: skip
    return (name, *(f"{count:,}" for count in counts))


if __name__ == "__main__":
    sys.exit(main())
