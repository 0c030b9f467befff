"""bioclip-hc evaluate: how often a model is right on labelled photographs.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bioclip_hc import shards_cli
from bioclip_hc.cli_options import device, model_options


def add_command(commands: Any) -> None:
    """Give the command line its `evaluate`."""
    p = commands.add_parser("evaluate", help="coarse-to-fine and top-down accuracy on labelled shards")
    p.set_defaults(command=_evaluate)
    model_options(p)
    p.add_argument("--data", required=True, help="shards: a folder, a glob, a brace range or a URL")
    shards_cli.source_options(p)
    p.add_argument("--synonyms", help="table (columns synonym, accepted) for names that the taxonomy lacks")
    p.add_argument("--output", help="folder for report.json and report.html")


def _evaluate(options: argparse.Namespace) -> int:
    from bioclip_hc.data.names import NameTable
    from bioclip_hc.data.shards import ShardSet
    from bioclip_hc.data.urls import shown, split_specs
    from bioclip_hc.evaluation import Report, Row, chance
    from bioclip_hc.evaluation.benchmark import evaluate
    from bioclip_hc.evaluation.systems import System
    from bioclip_hc.model import resolve_folder
    from bioclip_hc.predictor import read_taxonomy

    folder = resolve_folder(options.model)
    taxonomy = read_taxonomy(folder, options.taxonomy)
    system = System.load(folder, device=device(options.device))
    shards = ShardSet(shards_cli.named_shards(options), NameTable(taxonomy, options.synonyms))
    if shards.resolution.flat:
        print(f"bioclip-hc: {shards.resolution}", file=sys.stderr)
    if unresolved := shards.unresolved(taxonomy):
        print(f"bioclip-hc: {unresolved}", file=sys.stderr)
    outcome = evaluate(system, shards, taxonomy)
    name = ",".join(map(shown, split_specs(options.data)))
    rows = [Row("chance", "", name, chance(outcome.truth, taxonomy))]
    rows += [Row(system.name, protocol, name, s) for protocol, s in outcome.scores().items()]
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
