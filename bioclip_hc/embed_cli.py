"""bioclip-hc embed: photographs, or texts, to vectors.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from bioclip_hc import predict_cli
from bioclip_hc.cli_options import model_options, output_form
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    from bioclip_hc.prediction.progress import Progress

FORMATS = ("npz", "csv", "json", "parquet")


def add_command(commands: Any) -> None:
    """Give the command line its `embed`."""
    p = commands.add_parser("embed", help="write embeddings (tangent vectors) of photographs, taxa or words")
    p.set_defaults(command=_embed)
    predict_cli.image_options(p)
    model_options(p)
    predict_cli.text_options(p)
    p.add_argument("--taxa", action="store_true", help="embed the taxa of the taxonomy, not images")
    p.add_argument(
        "--texts", metavar="FILE|A,B,C", help="embed these names or words, as predict --classes takes them"
    )
    p.add_argument("--as-words", action="store_true", help="embed texts in these very words, never as taxa")
    p.add_argument("--format", choices=FORMATS, help="by default as the output is named, else json")
    p.add_argument("--output", metavar="FILE", help="by default standard output, for csv and json")


def _embed(options: argparse.Namespace) -> int:
    from bioclip_hc.prediction.output import destination
    from bioclip_hc.prediction.progress import Progress
    from bioclip_hc.prediction.vectors import make_vector_writer

    form = output_form(options, FORMATS, "json")
    asked = [bool(options.images or options.listed), options.taxa, options.texts is not None]
    if sum(asked) > 1:
        raise ValueError("images, --taxa and --texts are embedded one at a time")
    predict_cli.check_names(options, options.texts, None, "--texts")
    if not any(asked[1:]):
        predict_cli.checked_images(options)
    seen = 0
    with destination(options.output, keep_part=form in ("csv", "json")) as sink:
        columns = _columns(options)
        writer = make_vector_writer(form, sink, columns)
        progress = Progress(sink.terminal, predict_cli.total(options))
        try:
            for row in _rows(options, progress):
                writer.write([row])
                progress.advance()
                seen += 1
            writer.close()
        finally:
            progress.close()
    if options.output:
        print(f"{seen} embeddings in {options.output}")
    return predict_cli.ended(progress, seen)


def _columns(options: argparse.Namespace) -> dict[str, str]:
    if options.taxa:
        return {**dict.fromkeys((*RANKS, "rank"), "text"), "embedding": "vector"}
    return {"text" if options.texts is not None else "file_name": "text", "embedding": "vector"}


def _rows(options: argparse.Namespace, progress: Progress) -> Iterator[dict[str, Any]]:
    predictor = predict_cli.predictor(options, progress)
    if options.taxa:
        taxonomy = predictor.taxonomy
        for t, vector in enumerate(predictor.text.cpu().numpy()):
            names = dict(zip(RANKS, taxonomy.lineage_names(t), strict=True))
            yield {**names, "rank": RANKS[int(taxonomy.rank[t])], "embedding": vector}
    elif options.texts is not None:
        classes = predictor.classes(options.texts, None, options.as_words)
        text = predictor.embed_classes(classes)
        yield from _named(zip(classes.names, text.cpu().numpy(), strict=True), "text")
    else:
        found = predictor.embed(
            predict_cli.files(options),
            batch_size=options.batch_size,
            workers=options.workers,
            on_error=progress.leave_out,
        )
        yield from _named(found, "file_name")


def _named(pairs: Iterable[tuple[str, Any]], column: str) -> Iterator[dict[str, Any]]:
    for name, vector in pairs:
        yield {column: name, "embedding": vector}
