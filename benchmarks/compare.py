"""Print a benchmark file as one table of ratios: python benchmarks/compare.py benchmarks/results/latest.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(path: Path) -> str:
    """Markdown: per group, each way's median time over the dense way's, and both peak memories."""
    content = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[str, dict[str, dict]] = {}
    for bench in content["benchmarks"]:
        way = (bench["params"] or {}).get("way", "four products")
        groups.setdefault(bench["group"], {})[way] = bench
    lines = ["| problem | way | median s | of dense | peak MiB |", "|---|---|---|---|---|"]
    for group, ways in groups.items():
        dense = ways["dense"]["stats"]["median"]
        for way, bench in ways.items():
            seconds, peak = bench["stats"]["median"], bench["extra_info"].get("peak_mib", "")
            lines.append(f"| {group} | {way} | {seconds:.3f} | {seconds / dense:.2f} | {peak} |")
    card = content["machine_info"]
    cpu = card["cpu"].get("brand_raw", "")
    lines.append(
        f"\n{cpu}, {card['torch_threads']} threads, {card['cpu_capability']}, torch {card['versions']['torch']}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
