"""Fuzz the readers with atheris (libFuzzer, guided by coverage): `make fuzz`, or

    python tests/fuzz/run.py [--only tar checkpoint ...] [--runs 200000] [--seconds 600]

Targets run one after another, each in a process of its own. What breaks one is kept in runs/fuzz/<target>/ as
crash-*, slow-* or oom-*; put it into tests/fuzz/found/<target>/ with the fix, where `make test` replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests")]
FOLDER = ROOT / "runs" / "fuzz"
MOST = 1 << 16  # bytes of an input
NAMES = ("tar", "index", "caption", "table", "checkpoint")


def main() -> int:
    """Returns 1 if anything broke."""
    options = parse()
    if options.child:
        return fuzz(options.child, options.libfuzzer)
    failed, total = 0, 0
    for name in options.only or NAMES:
        corpus = FOLDER / name / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        words = [f"-runs={options.runs}", f"-max_len={MOST}", "-timeout=20", "-rss_limit_mb=4096"]
        words += [
            "-print_final_stats=1",
            f"-artifact_prefix={FOLDER / name}/",
            f"-seed={options.seed}",
            str(corpus),
        ]
        if options.seconds:
            words.append(f"-max_total_time={options.seconds}")
        run = subprocess.run([sys.executable, __file__, "--child", name, *words], text=True, capture_output=True)
        (FOLDER / f"{name}.log").write_text(run.stdout + run.stderr)
        count, line = told(run.stderr)
        total += count
        broke = "" if run.returncode == 0 else f"; ENDED WITH {run.returncode}, see {FOLDER / name}.log"
        print(f"{name}: {line}{broke}", flush=True)
        failed += run.returncode != 0
    print(f"{total:,} cases")
    return int(bool(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--runs", type=int, default=200_000, help="of each target")
    parser.add_argument("--seconds", type=int, default=0, help="for each target at most; 0: no bound")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("libfuzzer", nargs="*", help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args()
    known.libfuzzer += rest
    return known


def told(log: str) -> tuple[int, str]:
    """Cases run, and a line of what libFuzzer says of them."""
    found = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", log)}
    count = found.get("number_of_executed_units", 0)
    coverage = (re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log) or [("?", "?", "?")])[-1]
    return count, (
        f"{count:,} cases, {found.get('average_exec_per_sec', 0):,} a second, coverage {coverage[0]}, "
        f"{coverage[2]} inputs kept, peak {found.get('peak_rss_mb', 0)} MB"
    )


def fuzz(name: str, words: list[str]) -> int:
    """In a process of its own: never returns but at an error."""
    import atheris

    sys.modules.pop("tarfile", None)  # imported before it could be instrumented
    with atheris.instrument_imports(include=["tarfile", "bioclip_hc.data", "bioclip_hc.taxonomy", "checkpoint"]):
        from fuzz.targets import TARGETS, place
    target, folder = TARGETS[name], place()
    corpus = next(Path(word) for word in words if not word.startswith("-"))
    for i, seed in enumerate(target.seeds()):
        (corpus / f"seed-{i:03d}").write_bytes(seed)

    def one(data: bytes) -> None:
        home = folder / "case"
        home.mkdir()
        try:
            target.read(data, home)
        except BaseException:  # kept here, for atheris does not survive long enough to keep it
            kept = f"crash-{hashlib.sha256(data).hexdigest()[:12]}"
            (corpus.parent / kept).write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(77)
        finally:
            shutil.rmtree(home)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        return target.mutate(data, most, random.Random(seed), atheris.Mutate)

    try:
        atheris.Setup([sys.argv[0], *words], one, custom_mutator=mutator)
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
