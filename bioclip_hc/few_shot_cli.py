"""bioclip-hc few-shot: how well a few labelled images of each taxon tell the others apart.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioclip_hc import benchmark_cli
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    from torch import Tensor

    from bioclip_hc.evaluation.question import Question
    from bioclip_hc.evaluation.shots import FewShot
    from bioclip_hc.evaluation.systems import System

METHODS = ("centroid", "tangent", "cosine", "knn")


def add_command(commands: Any) -> None:
    """Give the command line its `few-shot`."""
    p = commands.add_parser(
        "few-shot",
        help="accuracy of classifiers made of a few images of each taxon, without any text",
        epilog=benchmark_cli.EXIT_CODES,
    )
    p.set_defaults(command=_few_shot)
    benchmark_cli.benchmark_options(p)
    p.add_argument(
        "--shots", type=int, nargs="+", default=[1, 5], metavar="K", help="images of a taxon; default 1 5"
    )
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="draws (default 5)")
    p.add_argument("--rank", choices=RANKS, help="only this one; by default each")
    p.add_argument(
        "--method",
        choices=METHODS,
        default="centroid",
        help="centroid: SimpleShot, in hyperbolic space Lorentz centroids (default); tangent: means of tangent "
        "vectors; cosine: SimpleShot whatever the space; knn: the majority of the nearest",
    )
    p.add_argument("--neighbours", type=int, default=1, metavar="K", help="of knn (default 1)")


def _few_shot(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from bioclip_hc.evaluation.shots import few_shot

    def ask(system: System, question: Question, vectors: Tensor, photographs: np.ndarray, shots: int) -> FewShot:
        return few_shot(
            vectors,
            question.truth[photographs],
            question.taxonomy,
            shots=shots,
            seeds=options.seeds,
            method=options.method,
            neighbours=options.neighbours,
            geometry=system.space["geometry"],
            curv=system.space["curv"],
            rank=options.rank,
        )

    found: list[tuple[str, int, FewShot]] = []
    code = 0
    with benchmark_cli.together(options) as world:
        systems, question = benchmark_cli.opened(options, world)
        for system in systems:
            for shots in options.shots:  # of no photographs, for what is wrong with the options
                ask(system, question, torch.zeros(0, system.model.embed_dim), np.empty(0, np.int64), shots)
        for system, contents, embedded in benchmark_cli.embedded(options, world, systems, question):
            if embedded is None:
                continue
            once = embedded.indices == contents.first[contents.content[embedded.indices]]
            if not found and not once.all():
                benchmark_cli.tell(f"set aside {(~once).sum()} images that are copies of others, byte by byte")
            code = max(code, benchmark_cli.tell_unread(system, question, embedded))
            for shots in options.shots:
                result = ask(system, question, embedded.vectors[once], embedded.indices[once], shots)
                found.append((system.name, shots, result))
    if not found:
        return 0
    name = question.benchmark.name
    if not any((result.classes > 1).any() for _, _, result in found):
        raise ValueError(
            f"nothing to tell apart: {name} has no two taxa of {options.rank or 'any rank'} with more than "
            f"{min(options.shots)} images each; take fewer --shots, or more photographs"
        )
    print(f"{name}, {options.method}, mean and deviation of {options.seeds} draws (accuracy in %)")
    print("\n".join(_table(found)))
    if options.output:
        content = {
            "benchmark": name,
            "method": options.method,
            "neighbours": options.neighbours if options.method == "knn" else None,
            "ranks": list(RANKS),
            "rows": [_row(system, shots, result) for system, shots, result in found],
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        path = Path(options.output) / "few-shot.json"
        benchmark_cli.write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))
        print(f"report: {path}")
    return code


def _table(found: list[tuple[str, int, FewShot]]) -> list[str]:
    """Lines of a table, two for each result; ranks at which no system was asked are left out."""
    ranks = [r for r in range(len(RANKS)) if any(result.classes[r] > 1 for _, _, result in found)]
    heads = [f"{name}, {shots} shot{'s' if shots > 1 else ''}" for name, shots, _ in found]
    told = "  of how many taxa (chance)"
    width = max(map(len, [told, *heads]))
    lines = [" " * width + "".join(RANKS[r].rjust(15) for r in ranks)]
    for head, (_, _, result) in zip(heads, found, strict=True):
        asked = [(r, result.classes[r] > 1) for r in ranks]
        accuracy = [f"{100 * result.mean[r]:.1f} ±{100 * result.std[r]:.1f}" if some else "–" for r, some in asked]
        among = [f"{result.classes[r]} ({100 / result.classes[r]:.1f})" if some else "–" for r, some in asked]
        for start, cells in ((head, accuracy), (told, among)):
            lines.append(start.ljust(width) + "".join(cell.rjust(15) for cell in cells))
    return lines


def _row(system: str, shots: int, result: FewShot) -> dict[str, Any]:
    def plain(values: Any) -> list[Any]:
        return [None if value != value else value for value in values.tolist()]

    return {
        "name": system,
        "shots": shots,
        "mean": plain(result.mean),
        "std": plain(result.std),
        "accuracy": [plain(draw) for draw in result.accuracy],
        "classes": result.classes.tolist(),
        "chance": [1 / count if count > 1 else None for count in result.classes.tolist()],
        "queries": result.queries.tolist(),
    }
