"""bioclip-hc: predict, embed, evaluate, shards, doctor.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bioclip_hc import __version__
from bioclip_hc.taxonomy import RANKS

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 done with some images left out, 2 a mistake to mend."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `bioclip-hc ... | head`, who has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit fails once more
        return 0
    except (ValueError, OSError) as error:
        print(f"bioclip-hc: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="bioclip-hc", description="Hierarchical CLIP models of the tree of life.")
    top.add_argument("--version", action="version", version=f"bioclip-hc {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("predict", help="name what is on photographs")
    p.set_defaults(command=_predict)
    p.add_argument("images", nargs="+", help="image files or folders")
    _model_options(p)
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
    _model_options(p)
    p.add_argument("--output", required=True, help=".npz with file_name (N,) and embedding (N, D) float32")

    p = commands.add_parser("evaluate", help="coarse-to-fine and top-down accuracy on labelled shards")
    p.set_defaults(command=_evaluate)
    _model_options(p)
    p.add_argument("--data", required=True, help="shards: a folder, a glob or a brace range")
    p.add_argument("--output", help="folder for report.json and report.html")

    p = commands.add_parser("shards", help="build shards, or say what is in them")
    kinds = p.add_subparsers(required=True, metavar="ACTION")
    b = kinds.add_parser("build", help="pack labelled photographs into shards")
    b.set_defaults(command=_build)
    b.add_argument("output", help="new or empty folder for the shards")
    source = b.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", help=f"table with a path column and the columns {', '.join(RANKS)}")
    source.add_argument("--folders", help="folders named as iNat 2021's: 00000_Animalia_..._terrestris/*.jpg")
    b.add_argument("--image-root", help="where relative paths of the table start; by default its own folder")
    b.add_argument("--path-column", default="filepath", help="default: filepath")
    b.add_argument("--samples-per-shard", type=int, default=10_000, help="default: 10000")
    b.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        help="share of each taxon's photographs put into OUTPUT/heldout instead of OUTPUT/train",
    )
    b.add_argument("--seed", type=int, default=0, help="of the holdout")
    i = kinds.add_parser("info", help="count samples, taxa, missing ranks and damage")
    i.set_defaults(command=_info)
    i.add_argument("data", nargs="+", help="shards: folders, globs or brace ranges")

    p = commands.add_parser("doctor", help="versions, devices and kernel backends of this machine")
    p.set_defaults(command=_doctor)
    return top


def _model_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", required=True, help="model folder, or owner/repo on the Hugging Face hub")
    p.add_argument("--taxonomy", help="table of the taxa to choose among; by default the model's own")
    p.add_argument("--device", default=None, help="cpu, cuda, ...; by default cuda where there is one")


def _device(name: str | None) -> str:
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


# -- photographs ------------------------------------------------------------------------------------------


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
    predictor = Predictor(options.model, options.taxonomy, _device(options.device))
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
    model, preprocess, _ = load(options.model, device=_device(options.device))
    single = ((torch.tensor([i]), preprocess(image)[None]) for i, image in enumerate(pictures))
    _, embedding = embed_images(model, single)
    with open(options.output, "wb") as file:  # given a name, savez would add .npz to it
        np.savez(file, file_name=np.array(pictures.names), embedding=embedding.numpy())
    print(f"{len(embedding)} embeddings of {model.embed_dim} numbers in {options.output}")
    return 1 if pictures.failed else 0


# -- shards -----------------------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from bioclip_hc.data.shards import ShardSet
    from bioclip_hc.evaluation import Report, Row, chance
    from bioclip_hc.evaluation.benchmark import evaluate
    from bioclip_hc.model import load, resolve_folder
    from bioclip_hc.predictor import read_taxonomy

    folder = resolve_folder(options.model)
    taxonomy = read_taxonomy(folder, options.taxonomy)
    model, preprocess, tokenizer = load(folder, device=_device(options.device))
    shards = ShardSet(options.data)
    if unresolved := shards.unresolved(taxonomy):
        print(f"bioclip-hc: {unresolved}", file=sys.stderr)
    outcome = evaluate(model, preprocess, tokenizer, shards, taxonomy)
    rows = [Row("chance", "", options.data, chance(outcome.truth, taxonomy))]
    rows += [Row(folder.name, protocol, options.data, s) for protocol, s in outcome.scores().items()]
    report = Report(f"{options.model} on {options.data}", rows)
    print(report.table())
    if options.output:
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        report.to_json(output / "report.json")
        report.to_html(output / "report.html")
        print(f"report: {output / 'report.html'}")
    unreadable = len(shards) - len(outcome.indices)
    if unreadable:
        print(f"bioclip-hc: left out {unreadable} of {len(shards)} images, which cannot be read", file=sys.stderr)
    return 1 if unreadable else 0


def _build(options: argparse.Namespace) -> int:
    from bioclip_hc.data import build
    from bioclip_hc.data.shards import write_shards

    if not 0 <= options.holdout < 1:
        raise ValueError(f"--holdout is a share in [0, 1), got {options.holdout}")
    if options.csv:
        photos = build.photos_from_csv(options.csv, options.image_root, options.path_column)
    else:
        photos = build.photos_from_folders(options.folders)
    output = Path(options.output)
    if options.holdout:
        held_in, held_out = build.split_by_individual(photos, 1 - options.holdout, options.seed)
        parts = {output / "train": held_in, output / "heldout": held_out}
    else:
        parts = {output: photos}
    skipped: list[build.Skipped] = []
    for folder, part in parts.items():
        before = len(skipped)
        samples = build.read_samples(part, skipped.append)
        paths = write_shards(samples, folder, samples_per_shard=options.samples_per_shard)
        print(f"{folder}: {len(part) - len(skipped) + before} photographs, {len(paths)} shard files")
    for path, reason in skipped:
        print(f"bioclip-hc: left out {path}: {reason}", file=sys.stderr)
    return 1 if skipped else 0


def _info(options: argparse.Namespace) -> int:
    import numpy as np

    from bioclip_hc.data.shards import ShardSet

    shards = ShardSet(options.data)
    taxonomy = shards.taxonomy()
    samples = np.bincount(shards.lineage_index, minlength=len(shards.lineages))
    known = samples @ np.array([[bool(name) for name in lineage] for lineage in shards.lineages])
    print(f"{len(shards)} samples in {len(shards.paths)} shards, {len(shards.bad)} unusable records")
    for r, name in enumerate(RANKS):
        print(
            f"  {name:<8} {len(taxonomy.at_rank(r)):>8} taxa   "
            f"{known[r]:>9} samples known, {len(shards) - known[r]} not"
        )
    for name, paths in list(taxonomy.report.conflicts.items())[:20]:
        print(f"  {name} stands under several parents: " + " | ".join(" > ".join(path) for path in paths))
    for shard, key, reason in shards.bad[:20]:
        print(f"  unusable: {shard} {key or '(the shard)'}: {reason}")
    return 0


# -- this machine -----------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from bioclip_hc.kernels.ops import BACKENDS, choose_backend

    print(f"bioclip_hc {__version__}, python {sys.version.split()[0]}")
    for package in (
        "torch",
        "torchvision",
        "open_clip_torch",
        "webdataset",
        "numpy",
        "triton",
        "deepspeed",
        "matplotlib",
    ):
        try:
            print(f"  {package:<16} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package:<16} not installed")
    print(f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        major, minor = torch.cuda.get_device_capability(i)
        print(f"cuda:{i}: {torch.cuda.get_device_name(i)}, sm_{major}{minor}")
    if not count:
        print("cuda: none")
    print(f"kernel backends: {', '.join(BACKENDS)}; chosen: {choose_backend(None)}")
    error = _self_check()
    print(f"self-check, tiled against reference: largest difference {error:.1e}")
    return 0 if error < 1e-4 else 2


def _self_check() -> float:
    """Largest difference of the chosen backend to the reference on a small problem, values and gradients."""
    import torch

    from bioclip_hc.kernels import level_infonce

    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 16, generator=generator) / 4 for n in (33, 21))
    taxa = torch.randint(-1, 5, (33, 3), generator=generator)
    rank, taxon = torch.arange(21) % 3, torch.arange(21) // 3 % 5
    results = []
    for backend in ("reference", None):
        x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
        nll = torch.cat([part.flatten() for part in level_infonce(x, y, taxa, rank, taxon, 10.0, backend=backend)])
        results.append(torch.cat([nll.detach(), *(g.flatten() for g in torch.autograd.grad(nll.sum(), (x, y)))]))
    return float((results[0] - results[1]).abs().max())


if __name__ == "__main__":
    sys.exit(main())
