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
from typing import TYPE_CHECKING, Any

from bioclip_hc import __version__, shards_cli
from bioclip_hc.data.captions import printable
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    import torch

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 done, 1 done with some images left out, 2 a mistake to mend, 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `bioclip-hc ... | head`, who has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit fails once more
        return 0
    except (ValueError, OSError) as error:
        # it may quote a server or a file: what a terminal would obey is not shown it
        print("bioclip-hc:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bioclip-hc: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # now, for processes at work would be waited for; they end with this one


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
    p.add_argument("--data", required=True, help="shards: a folder, a glob, a brace range or a URL")
    shards_cli.source_options(p)
    p.add_argument("--synonyms", help="table (columns synonym, accepted) for names that the taxonomy lacks")
    p.add_argument("--output", help="folder for report.json and report.html")

    p = commands.add_parser("shards", help="build, split, index, verify or inspect shards")
    shards_cli.add_actions(p)

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


# -- labelled shards -----------------------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from bioclip_hc.data.names import NameTable
    from bioclip_hc.data.shards import ShardSet
    from bioclip_hc.data.urls import shown, split_specs
    from bioclip_hc.evaluation import Report, Row, chance
    from bioclip_hc.evaluation.benchmark import evaluate
    from bioclip_hc.model import load, resolve_folder
    from bioclip_hc.predictor import read_taxonomy

    folder = resolve_folder(options.model)
    taxonomy = read_taxonomy(folder, options.taxonomy)
    model, preprocess, tokenizer = load(folder, device=_device(options.device))
    shards = ShardSet(shards_cli.named_shards(options), NameTable(taxonomy, options.synonyms))
    if shards.resolution.flat:
        print(f"bioclip-hc: {shards.resolution}", file=sys.stderr)
    if unresolved := shards.unresolved(taxonomy):
        print(f"bioclip-hc: {unresolved}", file=sys.stderr)
    outcome = evaluate(model, preprocess, tokenizer, shards, taxonomy)
    name = ",".join(map(shown, split_specs(options.data)))
    rows = [Row("chance", "", name, chance(outcome.truth, taxonomy))]
    rows += [Row(folder.name, protocol, name, s) for protocol, s in outcome.scores().items()]
    report = Report(f"{options.model} on {name}", rows)
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


# -- this machine -----------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from bioclip_hc.data.decode import decoder
    from bioclip_hc.kernels import cpu, cuda
    from bioclip_hc.kernels.backends import BACKENDS, choose_backend, why_not

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
    native = "none" if cpu.why_not() else f"for {cpu.instruction_set()}"
    print(f"photographs: decoded by {decoder()}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"cpu: {torch.get_num_threads()} threads, {capability}; C++ kernels: {native}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        major, minor = torch.cuda.get_device_capability(i)
        rows = cuda.why_not(torch.device("cuda", i)) or "built, taken by nothing unless asked"
        print(f"cuda:{i}: {torch.cuda.get_device_name(i)}, sm_{major}{minor}; C++ kernels of rows: {rows}")
    if not count:
        print("cuda: none")
    agree = True
    for device in (torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))):
        print(f"kernel backends on {device}; chosen: {choose_backend(None, device, torch.float32)}")
        for backend in BACKENDS:
            reason = why_not(backend, device)
            if reason is None:
                verdict, agrees = _verdict(backend, device)
                agree &= agrees
            else:
                verdict = f"not live: {reason}"
            print(f"  {backend:<10} {verdict}")
    if not count and "TRITON_INTERPRET" in str(why_not("triton", torch.device("cpu"))):
        print("To check the triton backend without a GPU: TRITON_INTERPRET=1 bioclip-hc doctor")
    return 0 if agree else 2


SELF_CHECK_TOLERANCE = 1e-4  # fp32 on a small problem differs by about 1e-6


def _verdict(backend: str, device: torch.device) -> tuple[str, bool]:
    """What the self-check of a live backend says, and whether it agrees with the reference."""
    try:
        error = _self_check(backend, device)
    except Exception as failure:  # whatever a compiler or a driver raises is what the doctor is asked about
        return f"live, but its self-check FAILS: {type(failure).__name__}: {failure}", False
    agrees = error < SELF_CHECK_TOLERANCE  # not for NaN
    found = f"largest difference to the reference {error:.1e}"
    return f"live, {found}" if agrees else f"live, but WRONG: {found}", agrees


def _self_check(backend: str, device: torch.device) -> float:
    """Largest difference of a backend in fp32 to the reference in float64, relative where a result exceeds 1."""
    import torch

    expected = _small_problem("reference", torch.device("cpu"), torch.float64)
    found = _small_problem(backend, device, torch.float32)
    errors = [(a.cpu() - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())


def _small_problem(backend: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Values and gradients of every operation, in both geometries."""
    import torch

    from bioclip_hc.kernels import exp_map0, level_infonce, lorentz_inner, rank_topk

    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 16, generator=generator) / 4 for n in (33, 21)]
    taxa = torch.randint(-1, 5, (33, 3), generator=generator).to(device)
    rank, taxon = (ids.to(device) for ids in (torch.arange(21) % 3, torch.arange(21) // 3 % 5))
    inputs = [x.to(device, dtype).requires_grad_() for x in (*features, torch.tensor(10.0), torch.tensor(0.7))]
    image, text, scale, curv = inputs
    results = []
    for geometry in ("lorentz", "euclidean"):
        rows = level_infonce(image, text, taxa, rank, taxon, scale, curv, geometry=geometry, backend=backend)
        nll = torch.cat([part.flatten() for part in rows])
        score, _ = rank_topk(image, text, rank, scale, curv, geometry=geometry, k=2, ranks=3, backend=backend)
        results += [nll, score, *torch.autograd.grad(nll.sum(), inputs, materialize_grads=True)]
    x, y = (exp_map0(v, curv, backend=backend) for v in (image, text))
    inner = lorentz_inner(x, y, curv, backend=backend)
    results += [x, inner, *torch.autograd.grad(inner.sum(), (image, text, curv))]
    return [result.detach() for result in results]


if __name__ == "__main__":
    sys.exit(main())
