"""bioclip-hc shards: build, split, index, verify, inspect.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioclip_hc.data.captions import printable
from bioclip_hc.progress import Progress
from bioclip_hc.taxonomy import RANKS, Lineage

if TYPE_CHECKING:
    from bioclip_hc.data.build import Skipped
    from bioclip_hc.data.names import NameTable
    from bioclip_hc.data.sample import Sample
    from bioclip_hc.data.survey import Survey
    from bioclip_hc.data.verify import Verdict

EXIT_CODES = (
    "Exit code: 0 done, nothing wrong; 1 done, something was left out or found; 2 a mistake to mend, in one line."
)


def add_actions(p: argparse.ArgumentParser) -> None:
    """Give the parser of `bioclip-hc shards` its actions."""
    actions = p.add_subparsers(required=True, metavar="ACTION")
    _add_build(actions)
    _add_split(actions)
    _add_index(actions)
    _add_verify(actions)
    _add_inspect(actions)


def _data_options(p: argparse.ArgumentParser) -> None:
    """Which shards, and with how many processes: what every action on existing shards takes."""
    p.add_argument("data", nargs="+", metavar="DATA", help="shards: folders, files, globs, brace ranges or URLs")
    source_options(p)
    _process_option(p)


def source_options(p: argparse.ArgumentParser) -> None:
    """How shards that are elsewhere come here; `named_shards` heeds it."""
    p.add_argument(
        "--cache",
        metavar="FOLDER",
        help="of remote shards; by default bioclip_hc/shards in $XDG_CACHE_HOME or ~/.cache",
    )
    p.add_argument("--allow-pipe", action="store_true", help="run pipe:COMMAND and take its output for a shard")


def named_shards(options: argparse.Namespace) -> list[Path]:
    """The shards meant by `options.data`, remote ones fetched."""
    from bioclip_hc.data.cache import say
    from bioclip_hc.data.sources import expand_shards

    return expand_shards(options.data, cache=options.cache, allow_pipe=options.allow_pipe, say=say)


def _name_options(p: argparse.ArgumentParser) -> None:
    """Where flat captions are looked up."""
    p.add_argument("--taxonomy", metavar="TABLE", help="table of taxa, to look up the names of flat captions")
    p.add_argument(
        "--synonyms", metavar="TABLE", help="table with the columns synonym and accepted, to look up more"
    )


def _names(options: argparse.Namespace) -> NameTable | None:
    from bioclip_hc.data.names import NameTable
    from bioclip_hc.taxonomy import Taxonomy

    if options.taxonomy is None:
        if options.synonyms is not None:
            raise ValueError("--synonyms goes with --taxonomy, whose names they stand for")
        return None
    return NameTable(Taxonomy.read(options.taxonomy), options.synonyms)


def _process_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--processes", type=_at_least(1), metavar="N", help="by default, one for each usable core")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least}, got {text}")
        return int(text)

    return number


def _processes(options: argparse.Namespace) -> int:
    from bioclip_hc.data.parallel import usable_processes

    return options.processes or usable_processes()


def _count_table(rows: Iterable[tuple[int, str, str]]) -> str:
    """Lines of a count, a reason and the first case, the most frequent first."""
    lines = sorted(rows, key=lambda row: -row[0])
    return "\n".join(
        f"{count:>10}  {_one_line(reason)}   (first: {_one_line(first, 500)})" for count, reason, first in lines
    )


def _counted(number: int, noun: str) -> str:
    """ "1 shard", "2 shards"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _one_line(text: str, width: int = 200) -> str:
    """A text of the data as a terminal may show it."""
    shown = printable(text[: width + 1])
    return shown if len(shown) <= width else shown[: width - 1] + "…"


# -- build ------------------------------------------------------------------------------------------------


def _add_build(actions: Any) -> None:
    p = actions.add_parser(
        "build",
        help="pack labelled photographs into shards",
        description="Pack labelled photographs into shards, with an index for each and SHA256SUMS. Pictures that "
        "do not decode are left out and told. Shards appear when all are written: a build that dies leaves none.",
        epilog=EXIT_CODES,
    )
    p.set_defaults(command=_build)
    p.add_argument("output", metavar="OUTPUT", help="folder for the shards, in which there are none yet")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", help=f"table with a path column and the columns {', '.join(RANKS)}")
    source.add_argument("--folders", help="folders named as iNat 2021's: 00000_Animalia_..._terrestris/*.jpg")
    p.add_argument("--image-root", help="where relative paths of the table start; by default its own folder")
    p.add_argument("--path-column", default="filepath", help="default: filepath")
    p.add_argument("--samples-per-shard", type=_at_least(1), default=10_000, metavar="N", help="default: 10000")
    p.add_argument(
        "--max-side",
        type=_at_least(1),
        metavar="PIXELS",
        help="make larger pictures smaller, as JPEG of quality 95; by default all keep their bytes",
    )
    p.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of each taxon's photographs put into OUTPUT/heldout instead of OUTPUT/train",
    )
    p.add_argument("--seed", type=int, default=0, help="of the holdout")
    _process_option(p)


def _build(options: argparse.Namespace) -> int:
    from bioclip_hc.data import build
    from bioclip_hc.data.quarantine import BadSample, count_causes
    from bioclip_hc.data.seal import seal
    from bioclip_hc.data.writer import whole_or_not_at_all, write_shards

    if not 0 <= options.holdout < 1:
        raise ValueError(f"--holdout is a share in [0, 1), got {options.holdout}")
    unread: list[Skipped] = []
    if options.csv:
        photos = build.photos_from_csv(options.csv, options.image_root, options.path_column)
    else:
        photos = build.photos_from_folders(options.folders, unread.append)
    output = Path(options.output)
    if options.holdout:
        held_in, held_out = build.split_by_individual(photos, 1 - options.holdout, options.seed)
        parts = {output / "train": held_in, output / "heldout": held_out}
    else:
        parts = {output: photos}
    for folder, part in parts.items():  # told now, not when half of them are written
        if not part:
            raise ValueError(
                f"--holdout {options.holdout} of {_counted(len(photos), 'photograph')} leaves none for {folder}: "
                "no taxon has enough; take another share, or leave --holdout out"
            )
    skipped: list[Skipped] = []
    told = []
    processes = _processes(options)
    with whole_or_not_at_all(*parts) as asides, Progress(len(photos), "photographs") as progress:
        done = 0

        def counted(samples: Iterable[Sample]) -> Iterator[Sample]:
            nonlocal done
            for sample in samples:
                done += 1
                progress(done + len(skipped))
                yield sample

        for (folder, part), aside in zip(parts.items(), asides, strict=True):
            before = len(skipped)
            samples = build.read_samples(part, skipped.append, processes=processes, max_side=options.max_side)
            first = next(samples, None)
            if first is None:
                _tell_skipped([*unread, *skipped])
                raise ValueError(
                    f"none of the {_counted(len(part), 'photograph')} for {folder} can be used, as told above; "
                    "nothing is written"
                )
            samples = counted(chain([first], samples))
            paths = write_shards(samples, aside, samples_per_shard=options.samples_per_shard)
            for _ in seal(paths, processes):
                pass
            photographs = _counted(len(part) - len(skipped) + before, "photograph")
            told.append(f"{_one_line(str(folder))}: {photographs}, {_counted(len(paths), 'shard file')}")
    print("\n".join(told))
    _tell_skipped([*unread, *skipped])
    if len(skipped) > 1:
        causes = count_causes(BadSample(str(path), "", reason) for path, reason in skipped)
        print(f"left out {len(skipped)} of {len(photos)}:\n" + _count_table(causes))
    return 1 if skipped or unread else 0


def _tell_skipped(skipped: Iterable[Skipped]) -> None:
    for path, reason in skipped:
        print(f"bioclip-hc: left out {_one_line(str(path))}: {_one_line(reason)}", file=sys.stderr)


# -- split ------------------------------------------------------------------------------------------------


def _add_split(actions: Any) -> None:
    p = actions.add_parser(
        "split",
        help="part shards into OUTPUT/train and OUTPUT/heldout",
        description="Part shards into training and held-out ones: some photographs of every taxon (--by "
        "individual), or whole species (--by species), drawn so that as many as can be keep their genus in "
        "training, else their family, and so on. Pictures and texts keep their bytes.",
        epilog=EXIT_CODES,
    )
    p.set_defaults(command=_split)
    _data_options(p)
    _name_options(p)
    p.add_argument("output", metavar="OUTPUT", help="folder for train/ and heldout/")
    p.add_argument("--by", choices=("individual", "species"), required=True)
    p.add_argument(
        "--fraction",
        type=float,
        metavar="SHARE",
        help="by individual: share of each taxon's photographs to train on, rounded up (default 0.5)",
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument("--species", type=_at_least(1), metavar="N", help="by species: how many to hold out")
    which.add_argument("--share", type=float, metavar="SHARE", help="by species: share of the species to hold out")
    which.add_argument("--list", metavar="FILE", help="by species: the ones to hold out, genus and epithet a line")
    p.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")


def _split(options: argparse.Namespace) -> int:
    import numpy as np

    from bioclip_hc.data import split
    from bioclip_hc.data.quarantine import count_causes
    from bioclip_hc.data.shards import ShardSet

    ways = {"--species": options.species, "--share": options.share, "--list": options.list}
    if options.by == "individual" and any(way is not None for way in ways.values()):
        raise ValueError(f"{', '.join(ways)} go with --by species")
    if options.by == "species" and (options.fraction is not None or all(way is None for way in ways.values())):
        raise ValueError(f"--by species takes one of {', '.join(ways)}, and no --fraction")
    shards = ShardSet(named_shards(options), _names(options))
    output = Path(options.output)
    told = ""
    if options.by == "individual":
        train = split.by_individual(shards, 0.5 if options.fraction is None else options.fraction, options.seed)
    else:
        known = split.species_of(shards)
        held_out = _held_out(options, known)
        train = split.by_species(shards, held_out)
        kept = split.kept_ranks(known, held_out)
        relatives = [f"{kept[rank]} their {rank}" for rank in reversed(RANKS) if kept[rank]]
        relatives += [f"{kept['']} nothing"] if kept[""] else []
        told = f"held out {len(held_out)} of {len(known)} species; in training keep " + ", ".join(relatives)
    with Progress(len(shards.paths), "shards") as progress:
        steps = count(1)
        outcome = split.write_split(shards, train, output, _processes(options), lambda: progress(next(steps)))
    for part in split.PARTS:
        lineages = len(np.unique(shards.lineage_index[train if part == "train" else ~train]))
        print(
            f"{_one_line(str(output / part))}: {_counted(outcome.samples[part], 'sample')} of "
            f"{_counted(lineages, 'lineage')}, {_counted(len(outcome.shards[part]), 'shard file')}"
        )
    if told:
        (output / "heldout-species.txt").write_text("".join(f"{name}\n" for name in sorted(held_out)), "utf-8")
        print(f"{told}; names in {output / 'heldout-species.txt'}")
    if outcome.left_behind:
        endings = ", ".join(f"{number} .{_one_line(end, 20)}" for end, number in outcome.left_behind.most_common())
        print(f"members not copied, for they are neither pictures nor texts: {endings}")
    if shards.bad:
        print(f"left out {len(shards.bad)} unusable records:\n" + _count_table(count_causes(shards.bad)))
    return 1 if shards.bad else 0


def _held_out(options: argparse.Namespace, known: Mapping[str, Lineage]) -> list[str]:
    """The species that the options choose."""
    from bioclip_hc.data import split

    if options.list is not None:
        try:
            lines = Path(options.list).read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.list} is not UTF-8 ({error}); convert it first") from None
        return split.listed_species(lines, known)
    if options.share is not None and not 0 < options.share < 1:
        raise ValueError(f"--share must be in (0, 1), got {options.share}")
    number = options.species or max(1, round(options.share * len(known)))
    return split.choose_species(known, number, options.seed)


# -- index ------------------------------------------------------------------------------------------------


def _add_index(actions: Any) -> None:
    p = actions.add_parser(
        "index",
        help="make or renew what lies beside shards: an index for each, SHA256SUMS for each folder",
        description="Make or renew the index of each shard and the SHA256SUMS of its folder. A shard that differs "
        "from its checksum keeps the old one, and the exit code is 1, unless --accept is given; "
        "a damaged tar is told.",
        epilog=EXIT_CODES,
    )
    p.set_defaults(command=_index)
    _data_options(p)
    p.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is stale")
    p.add_argument("--accept", action="store_true", help="take shards that differ from SHA256SUMS as they are")


def _index(options: argparse.Namespace) -> int:
    from bioclip_hc.data.seal import seal

    paths = named_shards(options)
    mended = left = done = 0
    with Progress(len(paths), "shards") as progress:

        def step() -> None:
            nonlocal done
            done += 1
            progress(done)

        for change in seal(paths, _processes(options), check=options.check, accept=options.accept, on_shard=step):
            mended += change.mended
            left += not (change.mended or change.noted)
            note = ": mended" if change.mended else ""
            print(f"{_one_line(str(change.path))} {_one_line(change.what)}{note}")
    rest = f", {left} left as they are" if left else ""
    print(
        f"{_counted(len(paths), 'shard')}; {_counted(mended, 'thing')} mended{rest}"
        if mended or left
        else f"{_counted(len(paths), 'shard')}, nothing stale"
    )
    return 1 if left else 0


# -- verify -----------------------------------------------------------------------------------------------


def _add_verify(actions: Any) -> None:
    p = actions.add_parser(
        "verify",
        help="read shards whole and report what is wrong with them",
        description="Check checksums, tars, indexes, captions and keys, and decode every picture as training does. "
        "Writes nothing beside the shards.",
        epilog=EXIT_CODES,
    )
    p.set_defaults(command=_verify)
    _data_options(p)
    _name_options(p)
    p.add_argument("--jsonl", metavar="FILE", help='write each finding as {"kind", "shard", "key", "reason"}')


def _verify(options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from bioclip_hc.data.verify import Finding, verify

    names = _names(options)
    paths = named_shards(options)
    with (
        open(options.jsonl, "w") if options.jsonl else nullcontext() as file,
        Progress(len(paths), "shards") as line,
    ):

        def write(finding: Finding) -> None:
            if file:
                file.write(json.dumps(finding._asdict()) + "\n")

        def show(so_far: Verdict) -> None:
            rate = so_far.decoded / max(time.monotonic() - line.begun, 1e-3)
            behind = so_far.decoded / max(so_far.samples, 1)  # shards are looked at before their pictures are
            line(so_far.shards * behind, f", {so_far.decoded} pictures, {rate:.0f} a second")

        verdict = verify(paths, _processes(options), names, write, show)
    print(
        f"{_counted(verdict.shards, 'shard')}, {_counted(verdict.samples, 'sample')}, "
        f"{_counted(verdict.decoded, 'picture')} decode"
    )
    for note in _notes(verdict):
        print(f"  note: {_one_line(note, 500)}")
    if not verdict.findings:
        print("nothing wrong")
        return 0
    print(f"{_counted(sum(count for count, _ in verdict.findings.values()), 'finding')}:")
    print(
        _count_table(
            (count, f"{kind}: {cause}", f"{first.shard} {first.key}".strip() + _in_full(cause, first.reason))
            for (kind, cause), (count, first) in verdict.findings.items()
        )
    )
    return 1


def _in_full(cause: str, reason: str) -> str:
    """A reason, where its cause does not say all of it."""
    return "" if cause == reason else f": {reason}"


def _notes(verdict: Verdict) -> Iterable[str]:
    """What is no error, but worth knowing."""
    from bioclip_hc.data.ambiguity import ambiguities
    from bioclip_hc.taxonomy import Taxonomy

    if verdict.unsigned:
        folders = _counted(len(verdict.unsigned), "folder")
        yield f"{folders} without SHA256SUMS: no bytes were compared; `shards index` makes it"
    if verdict.not_looked_up:
        samples = _counted(verdict.not_looked_up, "sample")
        yield (
            f"{samples} with flat captions only: their names were NOT looked up; "
            "give --taxonomy TABLE to check them; "
            "training on them needs --data.taxonomy"
        )
    if verdict.stale:
        shards = _counted(verdict.stale, "shard")
        yield f"{shards} without an index that fits; the first reader makes it, or `shards index`"
    found = ambiguities(Taxonomy.from_lineages(verdict.lineages))
    for kind in dict.fromkeys(ambiguity.kind for ambiguity in found):
        of_kind = [ambiguity for ambiguity in found if ambiguity.kind == kind]
        yield f"{len(of_kind)} names {kind}; the first: {of_kind[0]}"


# -- inspect ----------------------------------------------------------------------------------------------


def _add_inspect(actions: Any) -> None:
    p = actions.add_parser(
        "inspect",
        help="say what is in shards, in figures and sample pictures",
        description="Say what is in shards: taxa and samples per rank, ambiguous names, repeated keys, lengths of "
        "texts, sizes of pictures, the long tail; with --output, as an HTML page with sample pictures.",
        epilog=EXIT_CODES,
    )
    p.set_defaults(command=_inspect)
    _data_options(p)
    _name_options(p)
    p.add_argument("--output", metavar="PAGE", help="write a page: one HTML file that needs nothing else")
    p.add_argument("--pictures", type=_at_least(0), default=60, metavar="N", help="on the page (default 60)")
    p.add_argument(
        "--headers",
        type=_at_least(1),
        default=10_000,
        metavar="N",
        help="pictures, spread evenly, whose headers are read for sizes (default 10000)",
    )
    p.add_argument("--json", action="store_true", help="print the figures as JSON")


def _inspect(options: argparse.Namespace) -> int:
    from bioclip_hc.data.shards import ShardSet
    from bioclip_hc.data.survey import survey
    from bioclip_hc.data.urls import shown

    if options.output and not Path(options.output).parent.is_dir():  # told before the work, not after it
        raise FileNotFoundError(f"--output {options.output}: there is no folder {Path(options.output).parent}")
    names = _names(options)
    shards = ShardSet(named_shards(options), names)
    with Progress(min(options.headers, len(shards)), "headers") as progress:
        found = survey(shards, options.headers, progress)
    remarks = shards.resolution.lines()
    if names:
        remarks.append(shards.unresolved(names.taxonomy) or f"{options.taxonomy} has every taxon that they name")
    if options.json:
        print(json.dumps({**found.to_dict(), "remarks": remarks}, indent=2))
    else:
        print("\n".join(_figures(found, remarks)))
    if options.output:
        from bioclip_hc.evaluation.contact_sheet import page, thumbnails

        title = f"Shards of {', '.join(map(shown, options.data))}"
        html = page(found, thumbnails(shards, found.headers, options.pictures), title, remarks)
        Path(options.output).write_text(html, encoding="utf-8")
        print(f"page: {options.output}", file=sys.stderr if options.json else sys.stdout)
    return 1 if found.unusable or found.headers.unread else 0


def _figures(found: Survey, remarks: list[str]) -> Iterator[str]:
    """The lines for the terminal."""
    from bioclip_hc.data.survey import CONTEXT, quantiles

    unusable = sum(number for number, _, _ in found.unusable)
    yield (
        f"{found.samples} samples in {found.shards} shards of {found.bytes / 1e9:.3g} GB, "
        f"{unusable} unusable records, {found.lineages} lineages"
    )
    for rank in found.ranks:
        yield f"  {rank.rank:<8} {rank.taxa:>8} taxa   {rank.known:>9} samples known, {rank.missing} not"
    yield from map(_one_line, remarks)
    yield "species by their pictures: " + ", ".join(f"{part.species} with {part.label}" for part in found.tail)
    largest = ", ".join(f"{_one_line(clade.path[-1], 40)} {clade.samples}" for clade in found.largest)
    if largest:
        yield f"largest classes: {largest}"
    headers = found.headers
    yield f"pictures, by the headers of {headers.looked_at}: " + ", ".join(
        f"{kind} {number}" for kind, number in headers.kinds.items()
    )
    for name, values in (("width", headers.width), ("height", headers.height), ("bytes", headers.bytes)):
        yield f"  {name:<8} " + "  ".join(f"{which} {value}" for which, value in quantiles(values).items())
    if headers.unread:
        yield "headers that cannot be read:\n" + _count_table(headers.unread)
    if found.texts:
        median, nearly, longest = found.texts.quantiles
        yield (
            f"texts: {median} tokens in the median, {nearly} at 99%, {longest} at most; {found.texts.cut} of "
            f"{found.texts.count}, of {found.texts.cut_samples} samples, are longer than {CONTEXT} and would be cut"
        )
        for tokens, text in found.texts.longest[:3]:
            yield f"  {tokens:>5}  {_one_line(text, 160)}"
    for kind in dict.fromkeys(ambiguity.kind for ambiguity in found.ambiguities):
        of_kind = [ambiguity for ambiguity in found.ambiguities if ambiguity.kind == kind]
        yield f"{len(of_kind)} names {kind}:"
        yield from (f"  {_one_line(str(ambiguity), 160)}" for ambiguity in of_kind[:5])
    if found.repeated:
        yield f"{found.repeated} keys in several shards:"
        yield from (
            f"  {_one_line(key, 60)}: {_one_line(', '.join(paths))}" for key, paths in found.repeated_first[:5]
        )
    if found.unusable:
        yield "unusable records:\n" + _count_table(found.unusable)
