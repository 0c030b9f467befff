"""What evaluate and few-shot have in common: which photographs, which systems, how they are embedded.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bioclip_hc import shards_cli
from bioclip_hc.cli_options import add_prompt_options, prompts_of
from bioclip_hc.data.captions import printable
from bioclip_hc.progress import Progress

if TYPE_CHECKING:
    from bioclip_hc.evaluation.images import Contents, Embedded
    from bioclip_hc.evaluation.processes import World
    from bioclip_hc.evaluation.question import Question
    from bioclip_hc.evaluation.systems import System

KINDS = ("inat21", "rare-species", "crypticbio", "treeoflife", "manifest")
EXIT_CODES = (
    "Exit code: 0 done; 1 done, some photographs were left out; 2 a mistake to mend, in one line. What was "
    "embedded is kept: a command that is killed goes on where it was when it is run again."
)


def benchmark_options(p: argparse.ArgumentParser) -> None:
    """Which systems, on what, by how many processes."""
    p.add_argument(
        "--model",
        required=True,
        action="append",
        help="model folder, owner/repo[@REVISION] on the Hugging Face hub, or a key of list-models (KEY=PATH for "
        "its weights at PATH); may be given several times",
    )
    p.add_argument("--revision", metavar="COMMIT", help="of a hub repository")
    p.add_argument(
        "--benchmark",
        choices=KINDS,
        metavar="B",
        help=f"{', '.join(KINDS)}; by default --data names labelled shards",
    )
    p.add_argument("--data", required=True, help="where it lies: a folder or table; of shards also a glob or URL")
    p.add_argument(
        "--images", metavar="FOLDER", help="of pictures, where they do not lie where the layout has them"
    )
    p.add_argument("--split", help="part of the benchmark: of inat21 val (default) ..., of crypticbio common ...")
    p.add_argument("--allow-outside", action="store_true", help="use files that paths or links outside lead to")
    p.add_argument("--download", action="store_true", help="of crypticbio: fetch pictures that are missing")
    p.add_argument(
        "--retry-dead", action="store_true", help="with --download: also those whose address was dead before"
    )
    p.add_argument(
        "--taxonomy",
        metavar="TABLE",
        help="the taxa to choose among; by default those of the benchmark, for shards those of the model",
    )
    p.add_argument("--synonyms", help="table (columns synonym, accepted) for names that the taxonomy lacks")
    shards_cli.source_options(p)
    for action in p._actions:
        if action.dest == "cache":
            action.help = "of embeddings and remote shards; by default bioclip_hc in $XDG_CACHE_HOME or ~/.cache"
    add_prompt_options(p)
    p.add_argument("--device", help="cpu, cuda, ...; by default cuda where there is one")
    p.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="that embed beside each other, on several GPUs one each; by default one, or as many as torchrun, "
        "deepspeed or srun have started",
    )
    p.add_argument(
        "--workers", type=int, metavar="N", help="that decode for each; by default 0, with a GPU up to 8"
    )
    p.add_argument("--output", metavar="FOLDER", help="for the report, as page, table and data")


def tell(line: str) -> None:
    """Something that people should know, on stderr."""
    print("bioclip-hc:", printable(line), file=sys.stderr, flush=True)


@contextmanager
def together(options: argparse.Namespace) -> Iterator[World]:
    """All processes of the command; see `evaluation.processes`."""
    from bioclip_hc.evaluation.processes import processes

    with processes(options.processes, options.arguments) as world:
        yield world


def opened(options: argparse.Namespace, world: World) -> tuple[list[System], Question]:
    """The systems and what they are asked."""
    from bioclip_hc.cli_options import device
    from bioclip_hc.evaluation.comparison import distinct_names
    from bioclip_hc.evaluation.layouts.tables import SUFFIXES, kind_of
    from bioclip_hc.evaluation.processes import own_device
    from bioclip_hc.evaluation.question import asked
    from bioclip_hc.evaluation.systems import open_system

    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {options.workers}")
    if options.benchmark is None and kind_of(Path(options.data)) in SUFFIXES:
        raise ValueError(f"--data {options.data} is a table, and no shards; add --benchmark manifest, or its kind")
    make_output(options.output if world.first else None)
    where = device(own_device(options.device, world))
    prompts = prompts_of(options)
    systems = distinct_names(
        [open_system(name, revision=options.revision, device=where, prompts=prompts) for name in options.model]
    )
    question = asked(
        options.benchmark,
        options.data,
        options.taxonomy,
        systems,
        images=options.images,
        split=options.split,
        allow_outside=options.allow_outside,
        download=options.download,
        retry_dead=options.retry_dead,
        synonyms=options.synonyms,
        cache=options.cache,
        allow_pipe=options.allow_pipe,
        say=tell if world.first else (lambda line: None),
    )
    if world.first:
        for line in question.lines():
            tell(line)
    return systems, question


def embedded(
    options: argparse.Namespace, world: World, systems: Sequence[System], question: Question
) -> Iterator[tuple[System, Contents, Embedded | None]]:
    """The photographs as each system sees them, system by system; None for all but the first process."""
    import torch

    from bioclip_hc.data.parallel import usable_processes
    from bioclip_hc.evaluation.embedding_cache import EmbeddingCache, default_embedding_cache
    from bioclip_hc.evaluation.images import contents_of, embed_photographs

    photographs = question.benchmark.photographs
    folder = Path(options.cache) / "embeddings" if options.cache else default_embedding_cache()
    say: Callable[[str], object] = tell if world.first else (lambda line: None)
    workers = options.workers
    if workers is None:
        gpus = torch.cuda.device_count() if "cuda" in str(options.device or "cuda") else 0
        workers = min(8, usable_processes() // max(1, gpus)) if gpus else 0
    with Progress(len(photographs), "photographs looked at") as progress:
        contents = contents_of(photographs, world, progress if world.first else (lambda done: None))
    for system in systems:
        with (
            Progress(len(contents.key), f"photographs seen by {printable(system.name)}") as progress,
            EmbeddingCache(folder, system.image_fingerprint, system.model.embed_dim, say) as cache,
        ):
            found = embed_photographs(
                system,
                photographs,
                contents,
                cache,
                world=world,
                workers=workers,
                progress=progress if world.first else (lambda done: None),
            )
        yield system, contents, found


def tell_unread(system: System, question: Question, found: Embedded) -> int:
    """Tell of photographs that a system cannot be asked for; the exit code."""
    total = len(question.benchmark.photographs)
    if found.unread:
        first = found.unread[0]
        tell(
            f"{system.name}: left out {len(found.unread)} of {total} images, which give no embedding; the first: "
            f"{question.benchmark.photographs.name(first.photograph)}: {first.reason}"
        )
    return 1 if found.unread or question.benchmark.left_out else 0


def text_cache(options: argparse.Namespace) -> Path | bool:
    """Where text embeddings are kept, as `taxa_texts` takes it."""
    return Path(options.cache) / "texts" if options.cache else True


def make_output(folder: str | None) -> None:
    """The folder of the results, before the work that fills it.

    Raises:
        OSError: it cannot be made or written.
        ValueError: what draws the report is not installed.
    """
    from importlib.util import find_spec

    if folder is None:
        return
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"--output {folder} is a file; name a folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--output {folder} cannot be written")
    if find_spec("matplotlib") is None:
        raise ValueError("--output needs matplotlib for its figures: pip install 'bioclip_hc[report]'")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function write a file, which has its name only when it is whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
