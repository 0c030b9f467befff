"""bioclip-hc predict and embed: photographs named, or turned into vectors.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bioclip_hc.cli_options import device, model_options
from bioclip_hc.taxonomy import RANKS

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def add_commands(commands: Any) -> None:
    """Give the command line its `predict` and `embed`."""
    p = commands.add_parser("predict", help="name what is on photographs")
    p.set_defaults(command=_predict)
    p.add_argument("images", nargs="+", help="image files or folders")
    model_options(p)
    p.add_argument("--rank", choices=RANKS, help="name only this rank; by default all seven")
    p.add_argument("--k", type=int, default=1, help="answers per rank (default 1)")
    p.add_argument(
        "--decode",
        choices=("independent", "top-down"),
        default="independent",
        help="choose each rank among all its taxa, or among the children of the taxon above",
    )
    p.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")

    p = commands.add_parser("embed", help="write image embeddings (tangent vectors) to a .npz file")
    p.set_defaults(command=_embed)
    p.add_argument("images", nargs="+", help="image files or folders")
    model_options(p)
    p.add_argument("--output", required=True, help=".npz with file_name (N,) and embedding (N, D) float32")


def _pictures(names: Iterable[str]) -> Iterator[Path]:
    """Files as they are, folders as the pictures below them."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
            if not found:
                raise FileNotFoundError(f"{path} holds no pictures ({', '.join(PICTURES)})")
            yield from found
        else:
            yield path


class _Readable:
    """Readable pictures, opened; the others are reported and counted."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = paths
        self.names: list[str] = []
        self.failed = 0

    def __iter__(self) -> Iterator[Any]:
        from bioclip_hc.data.decode import decode_image

        for path in self.paths:
            try:
                image = decode_image(path.read_bytes())
            except (ValueError, OSError) as error:
                self.failed += 1
                print(f"bioclip-hc: left out {path}: {error}", file=sys.stderr)
                continue
            self.names.append(str(path))
            yield image


def _predict(options: argparse.Namespace) -> int:
    from bioclip_hc.predictor import Predictor

    pictures = _Readable(_pictures(options.images))
    predictor = Predictor(options.model, options.taxonomy, device(options.device))
    answers = predictor.predict(pictures, rank=options.rank, k=options.k, decode=options.decode)
    named = (p._replace(file_name=pictures.names[i]) for i, found in enumerate(answers) for p in found)
    _WRITERS[options.format](p.to_dict() for p in named)
    return 1 if pictures.failed else 0


def _write_csv(rows: Iterable[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, ["file_name", *RANKS, "common_name", "rank", "score"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)


def _write_json(rows: Iterable[dict[str, Any]]) -> None:
    """One object a line, as results come."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def _write_table(rows: Iterable[dict[str, Any]]) -> None:
    current = None
    for row in rows:
        if row["file_name"] != current:
            current = row["file_name"]
            print(current)
        name = row[row["rank"]]
        if row["rank"] == "species":
            name = f"{row['genus']} {name}".strip()
        common = f"  ({row['common_name']})" if row["common_name"] else ""
        print(f"  {row['rank']:<8} {row['score']:6.1%}  {name}{common}")


_WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json}


def _embed(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from bioclip_hc.evaluation.embeddings import embed_images
    from bioclip_hc.model import load

    pictures = _Readable(_pictures(options.images))
    model, preprocess, _ = load(options.model, device=device(options.device))
    single = ((torch.tensor([i]), preprocess(image)[None]) for i, image in enumerate(pictures))
    _, embedding = embed_images(model, single)
    with open(options.output, "wb") as file:  # given a name, savez would add .npz to it
        np.savez(file, file_name=np.array(pictures.names), embedding=embedding.numpy())
    print(f"{len(embedding)} embeddings of {model.embed_dim} numbers in {options.output}")
    return 1 if pictures.failed else 0
