"""bioclip-hc predict: names for photographs.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bioclip_hc.cli_options import add_prompt_options, device, model_options, output_form, prompts_of
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    from bioclip_hc.prediction.progress import Progress
    from bioclip_hc.predictor import Predictor

FORMATS = ("table", "csv", "json", "parquet")
DECODERS = ("independent", "top-down", "path")


def add_command(commands: Any) -> None:
    """Give the command line its `predict`."""
    p = commands.add_parser("predict", help="name what is on photographs")
    p.set_defaults(command=_predict)
    image_options(p)
    model_options(p)
    text_options(p)
    what = p.add_argument_group("what may be answered (by default a taxon of each rank)")
    what.add_argument("--rank", choices=RANKS, help="name only this rank")
    what.add_argument("--subset", metavar="CSV", help="only the taxa of this table, those below and above them")
    what.add_argument(
        "--classes",
        "--cls",
        metavar="FILE|A,B,C",
        help="only these classes: a file with one a line, or names with commas; taxa, or any words",
    )
    what.add_argument("--bins", metavar="CSV", help="table of classes and bins: answered are bins, with their sums")
    what.add_argument("--as-words", action="store_true", help="ask for classes in these very words, never as taxa")
    p.add_argument("--k", type=int, help="answers per rank (default 1), or per image of classes and bins (all)")
    p.add_argument(
        "--decode",
        choices=DECODERS,
        default="independent",
        help="choose each rank among all its taxa, or among the children of the taxon above, or the best path",
    )
    p.add_argument(
        "--min-prob",
        type=float,
        default=0.0,
        metavar="P",
        help="leave out what is less probable; a path ends above the first of them",
    )
    p.add_argument("--format", choices=FORMATS, help="by default as the output is named, else table")
    p.add_argument("--output", metavar="FILE", help="where to write; by default standard output")
    p.add_argument("--log", metavar="FILE", help="record of model, taxa, options and counts: .json, or lines added")


def image_options(p: argparse.ArgumentParser) -> None:
    """Which images, and how they are read."""
    p.add_argument("images", nargs="*", help="files, folders, quoted patterns ('photos/**/*.jpg'), or -")
    p.add_argument("--from", dest="listed", metavar="FILE", help="a list of files, one a line; - is standard input")
    p.add_argument("--null", "-0", action="store_true", help="names in the list end with zero bytes (find -print0)")
    p.add_argument("--batch-size", type=int, help="images at once on the device (default 64, on a CPU 4)")
    p.add_argument("--workers", type=int, help="threads that decode (by default one for each core; 0: none)")


def text_options(p: argparse.ArgumentParser) -> None:
    """In which words the model is asked, what names mean, and where their embeddings are kept."""
    add_prompt_options(p)
    p.add_argument("--revision", metavar="COMMIT", help="of a hub repository")
    p.add_argument(
        "--synonyms", metavar="CSV", help="table (columns synonym, accepted) for names that are not taxa"
    )
    p.add_argument("--no-cache", action="store_true", help="neither read nor keep text embeddings on disk")


def checked_images(options: argparse.Namespace) -> None:
    """Raise for arguments that can be no images, before anything is loaded."""
    from bioclip_hc.prediction.inputs import check_arguments

    if not options.images and not options.listed:
        raise ValueError("no images: name files, folders or patterns, or a list with --from")
    if options.listed not in (None, "-") and not os.path.exists(options.listed):
        raise FileNotFoundError(f"list of images {options.listed} does not exist")
    check_arguments(name for name in options.images if name != "-")


def check_names(options: argparse.Namespace, words: str | None, others: str | None, which: str) -> None:
    """Raise ValueError for --synonyms or --as-words where there are no names that they could be of."""
    if options.as_words and not words:
        raise ValueError("--as-words says how classes are taken, and there are none")
    if options.synonyms and (options.as_words or not (words or others)):
        raise ValueError(f"--synonyms are of the names of {which}, and none is looked up; leave it out")


def files(options: argparse.Namespace) -> Iterator[str]:
    """The images that were named, each once.

    Raises:
        ValueError: there are none.
    """
    from bioclip_hc.prediction.inputs import Files, listed_names

    found = Files()
    arguments = [name for name in options.images if name != "-"]
    lists = ["-"] if len(arguments) < len(options.images) else []
    lists += [options.listed] if options.listed and options.listed not in lists else []
    names = itertools.chain(
        found.found(arguments),
        *(found.found(listed_names(source, options.null), patterns=False) for source in lists),
    )
    first = next(names, None)
    if first is None:
        raise ValueError("no images: the list is empty")
    yield first
    yield from names


def total(options: argparse.Namespace) -> int | None:
    """How many images there are, where that is plain to see."""
    plain = not options.listed and all(os.path.isfile(name) for name in options.images)
    return len(options.images) if plain else None


def predictor(options: argparse.Namespace, progress: Progress) -> Predictor:
    """The model that was named."""
    import warnings

    from bioclip_hc.predictor import Predictor

    warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that it can read: told is what it cannot
    return Predictor(
        options.model,
        options.taxonomy,
        device(options.device),
        revision=options.revision,
        prompts=prompts_of(options),
        synonyms=options.synonyms,
        cache=not options.no_cache,
        tell=progress.tell,
    )


def ended(progress: Progress, seen: int) -> int:
    """The exit code, after a line on what was left out."""
    if progress.left_out:
        progress.tell(f"{progress.left_out} of {seen + progress.left_out} images left out")
    return 1 if progress.left_out else 0


def _predict(options: argparse.Namespace) -> int:
    from bioclip_hc.prediction.answers import BIN_COLUMNS, CLASS_COLUMNS, TAXON_COLUMNS
    from bioclip_hc.prediction.output import destination
    from bioclip_hc.prediction.progress import Progress
    from bioclip_hc.prediction.writers import AnswerTable, make_writer

    checked_images(options)
    check_names(options, options.classes or options.bins, options.subset, "--classes, --bins or --subset")
    form = output_form(options, FORMATS, "table")
    columns = BIN_COLUMNS if options.bins else CLASS_COLUMNS if options.classes else TAXON_COLUMNS
    seen = 0
    with destination(options.output, keep_part=form != "parquet") as sink:
        writer = make_writer(form, sink, columns, AnswerTable)
        progress = Progress(sink.terminal, total(options))
        try:
            model = predictor(options, progress)
            answers = model.predict(
                files(options),
                rank=options.rank,
                k=options.k,
                decode=options.decode,
                min_prob=options.min_prob,
                subset=options.subset,
                classes=options.classes,
                bins=options.bins,
                as_words=options.as_words,
                batch_size=options.batch_size,
                workers=options.workers,
                on_error=progress.leave_out,
            )
            for found in answers:
                writer.write(found.rows(columns))
                progress.advance()
                seen += 1
            writer.close()
        finally:
            progress.close()
    if options.log:
        from bioclip_hc.prediction.record import write_record

        given = {name: value for name, value in vars(options).items() if name != "command"}
        counts = {"answered": seen, "left_out": progress.left_out}
        write_record(options.log, model.system, model.known_taxonomy, given, counts)
    return ended(progress, seen)
