"""bioclip-hc evaluate: how often models are right on labelled photographs.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioclip_hc import benchmark_cli
from bioclip_hc.benchmark_cli import write_whole

if TYPE_CHECKING:
    from bioclip_hc.evaluation.report import Report
    from bioclip_hc.evaluation.rows import Row
    from bioclip_hc.evaluation.study import Run


def add_command(commands: Any) -> None:
    """Give the command line its `evaluate`."""
    p = commands.add_parser(
        "evaluate",
        help="accuracy at every rank on a benchmark or labelled shards, under all protocols",
        epilog=benchmark_cli.EXIT_CODES,
    )
    p.set_defaults(command=_evaluate)
    benchmark_cli.benchmark_options(p)
    p.add_argument("--abstain", type=float, metavar="P", help="also: name no rank less probable than P")
    p.add_argument(
        "--max-risk",
        type=float,
        metavar="R",
        help="also: name what is sure enough that, with 95%% confidence, at most R of the names at a rank are "
        "wrong; half of the photographs set the thresholds, the other half is scored",
    )
    p.add_argument(
        "--training-counts",
        metavar="SOURCE",
        help="training images of each taxon, for scores of head, tail and unseen: a table with a column images, a "
        "model folder, or the training shards; by default what the model's folder says",
    )
    p.add_argument("--clade", action="append", default=[], metavar="TAXON", help="show who is confused within it")
    p.add_argument(
        "--predictions", choices=("csv", "parquet"), default="csv", help="of --output, per image (default: csv)"
    )


def _evaluate(options: argparse.Namespace) -> int:
    from dataclasses import replace
    from importlib.util import find_spec

    from bioclip_hc.evaluation.comparison import (
        Stopping,
        chance_rows,
        notes_of,
        run_of,
        stopping_rows,
        system_facts,
    )
    from bioclip_hc.evaluation.confusion import find_taxon
    from bioclip_hc.evaluation.counts import read_counts
    from bioclip_hc.evaluation.study import report_of

    stopping = Stopping(options.abstain, options.max_risk)
    if options.output and options.predictions == "parquet" and find_spec("pyarrow") is None:
        raise ValueError("--predictions parquet needs pyarrow: pip install 'bioclip_hc[parquet]'; or take csv")
    counts = None
    runs: list[Run] = []
    extra_rows: list[Row] = []
    baselines: list[Row] = []
    notes: list[str] = []
    code = 0
    with benchmark_cli.together(options) as world:
        systems, question = benchmark_cli.opened(options, world)
        for clade in options.clade:
            find_taxon(clade, question.taxonomy)
        if options.training_counts and world.first:
            counts = read_counts(options.training_counts, question.taxonomy)
        for system, contents, found in benchmark_cli.embedded(options, world, systems, question):
            if found is None:
                continue
            run = run_of(
                system,
                question,
                found,
                stopping=stopping,
                texts=benchmark_cli.text_cache(options),
                counts=counts,
                tell=benchmark_cli.tell,
            )
            runs.append(run)
            extra_rows += stopping_rows(run, stopping, contents)
            code = max(code, benchmark_cli.tell_unread(system, question, found))
            if not baselines:
                baselines += chance_rows(question, found, stopping, contents)
                notes = notes_of(question, found)
    if not runs:
        return 0
    title = f"{', '.join(run.name for run in runs)} on {question.benchmark.name}"
    report = report_of(title, runs, baselines=baselines, clades=options.clade)
    rows = [*report.rows, *extra_rows]
    lacking = {run.name: run.extra.get("published figures") for run in runs}
    notes += [f"{name}: published figures {why}" for name, why in lacking.items() if why]
    report = replace(report, rows=rows, notes=notes, systems=[system_facts(system) for system in systems])
    print(report.table())
    print(f"\ncandidates: {question.candidates}, {question.taxonomy.size}")
    for row in extra_rows:
        for key, value in row.extra.items():
            if key.startswith("named"):
                print(f"{row.name}, {row.protocol}: {key}: {value}")
    if options.output:
        _write(Path(options.output), report, runs, options.predictions)
    return code


def _write(folder: Path, report: Report, runs: list[Run], form: str) -> None:
    from bioclip_hc.evaluation.comparison import PREDICTION_COLUMNS, prediction_rows
    from bioclip_hc.prediction.output import destination
    from bioclip_hc.prediction.writers import TextWriter, make_writer

    write_whole(folder / "report.json", report.to_json)
    write_whole(folder / "report.html", report.to_html)
    write_whole(folder / "report.md", report.to_markdown)
    with destination(str(folder / f"predictions.{form}"), keep_part=False) as sink:
        writer = make_writer(form, sink, PREDICTION_COLUMNS, TextWriter)
        rows: list[dict[str, Any]] = []
        for row in prediction_rows(runs):
            rows.append(row)
            if len(rows) == 4096:
                writer.write(rows)
                rows = []
        writer.write(rows)
        writer.close()
    print(f"report: {folder / 'report.html'}")
