"""How long (of one core) benchmarks take to open, and what they hold: 100,000 empty files in the published layouts.

    BIOCLIP_HC_DATA=FOLDER python benchmarks/layouts.py [--each 10]

The names are those of iNaturalist 2021's 10,000 species (taxonomies/inat21.csv of $BIOCLIP_HC_DATA). Each layout is
opened by a process of its own. Files are made just before, so they are in the page cache; half a minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bioclip_hc.data.pictures import Pictures, picture_address
from bioclip_hc.evaluation.layouts import open_benchmark
from bioclip_hc.taxonomy import RANKS

LAYOUTS = {  # what -> kind, data, and the folder of pictures where that is not the table's own
    "inat21, class folders": ("inat21", "inat/val", ""),
    "inat21, val.json": ("inat21", "json/val.json", "inat"),
    "manifest, CSV": ("manifest", "json/table.csv", "inat"),
    "manifest, parquet": ("manifest", "json/table.parquet", "inat"),
    "crypticbio, all fetched before": ("crypticbio", "cryptic/table.csv", ""),
}


def make(root: Path, each: int) -> None:
    """All of them below one folder; the pictures of iNat21 are shared."""
    import pyarrow
    import pyarrow.parquet

    table = Path(os.environ["BIOCLIP_HC_DATA"]) / "taxonomies" / "inat21.csv"
    with table.open(encoding="utf-8") as file:
        species = list(csv.DictReader(file))
    for name in ("inat", "json", "cryptic"):
        (root / name).mkdir()
    pictures = Pictures(root / "cryptic" / "images")
    content: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    manifest = [["file_name", *RANKS, "common_name"]]
    cryptic = [["scientificName", "url", *RANKS[:-1]]]
    for i, taxon in enumerate(species):
        names = [taxon[rank] for rank in RANKS]
        folder = "_".join([f"{i:05d}", *names])
        (root / "inat" / "val" / folder).mkdir(parents=True)
        category = {**dict(zip(RANKS[:-1], names, strict=False)), "id": i, "specific_epithet": names[-1]}
        content["categories"].append({**category, "common_name": taxon["common_name"], "image_dir_name": folder})
        for _ in range(each):
            number = len(content["images"])
            path = f"val/{folder}/{number:08x}-1111-4222-8333-444444444444.jpg"
            (root / "inat" / path).touch()
            image = {"width": 500, "height": 375, "rights_holder": "A Person Somewhere", "latitude": 43.1}
            content["images"].append(
                {"id": number, "file_name": path, "date": "2019-07-04 10:10:10+00:00", **image}
            )
            content["annotations"].append({"id": number, "image_id": number, "category_id": i})
            manifest.append([path, *names, taxon["common_name"]])
            url = f"https://example.org/photos/{number}/original.jpg"
            file = pictures.folder / pictures.file(picture_address(url))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            cryptic.append([f"{names[5]} {names[6]}", url, *names[:-1]])
    (root / "json" / "val.json").write_text(json.dumps(content), encoding="utf-8")
    for path, rows in (("json/table.csv", manifest), ("cryptic/table.csv", cryptic)):
        with (root / path).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    columns = dict(zip(manifest[0], map(list, zip(*manifest[1:], strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "json" / "table.parquet")


def measure(kind: str, data: str, images: str) -> None:
    """Open one, and print seconds, MiB held and at most, and photographs."""
    import bioclip_hc.data.photographs  # noqa: F401  numpy's own memory is no benchmark's

    before, began = memory("VmRSS"), time.process_time()
    benchmark = open_benchmark(kind, data, images=images or None)
    seconds = time.process_time() - began
    now, peak = memory("VmRSS") - before, memory("VmHWM") - before
    print(f"| {seconds:.1f} | {now:.0f} ({peak:.0f}) | {len(benchmark.photographs):,} |")


def memory(what: str) -> float:
    """MiB of this process, now (VmRSS) or at most (VmHWM)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="photographs of a species")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.each)
        print("| layout | CPU seconds | MiB held (peak) | photographs |\n| --- | --- | --- | --- |")
        for name, (kind, data, images) in LAYOUTS.items():
            pictures = f"{folder}/{images}" if images else ""
            command = [sys.executable, __file__, "--measure", kind, f"{folder}/{data}", pictures]
            print(f"| {name} ", end="", flush=True)
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
