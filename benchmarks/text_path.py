"""What the text path saves: the text tower's time for a batch's texts, by four ways. Writes docs/text.md.

    BIOCLIP_HC_DATA=FOLDER python benchmarks/text_path.py [--images 4096] [--every 4] [--threads 1] [--write]

# B images, U distinct taxa of the batch over all ranks, L tokens of a text, D embed

Forward and backward of the text tower alone, for the distinct taxa of the seven ranks of a batch whose species
follow Zipf's law (towers.py): by the authors' way, each text padded to the context length, and by the steps from
there to ours. A way goes through its texts in parts of about as many tokens as 64 padded texts have; gradients add
up. A round is one part of each way in turn, so that whatever else the machine does meets all alike; seconds are
this process' own on the CPU. A way's time is that of its parts so far, taken up to all of its tokens. Before
anything is timed, features and gradients of all ways are compared on a part of the texts. What the loader does,
tokens and packing, is timed apart: it happens in other processes, ahead of the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from documents import require, table, update  # noqa: E402
from torch import Tensor  # noqa: E402
from towers import FORM, draw_lineages, read_taxonomy  # noqa: E402

from bioclip_hc.data.samplers import unique_texts  # noqa: E402
from bioclip_hc.data.text import TaxonTokens  # noqa: E402
from bioclip_hc.model import HierarchicalCLIP, create_model, get_tokenizer  # noqa: E402
from bioclip_hc.packing import PackedTexts, pack  # noqa: E402
from bioclip_hc.taxonomy import Taxonomy  # noqa: E402

DOCUMENT, BEGIN, END = ROOT / "docs" / "text.md", "<!-- measured -->", "<!-- end of measured -->"
PART = 64  # padded texts of one part; other ways' parts have about as many tokens
COMPARED = 48  # texts on which the ways are held against each other


class Part(NamedTuple):
    """Texts that go through the tower together: how to encode them, which they are (u,), and their tokens."""

    encode: Callable[[], Tensor]
    texts: Tensor
    tokens: int


@dataclasses.dataclass
class Way:
    """One way through all texts; the seconds that each part took which was measured, and its tokens."""

    name: str
    parts: list[Part]
    seconds: list[float] = dataclasses.field(default_factory=list)
    gone: list[int] = dataclasses.field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that go through the tower for all texts, padding included."""
        return sum(part.tokens for part in self.parts)

    @property
    def whole(self) -> float:
        """Seconds for all texts."""
        return sum(self.seconds) / sum(self.gone) * self.tokens

    def go(self, number: int, toward: Tensor) -> None:
        """Forward and backward of one part, timed; gradients add to what the parameters have."""
        part = self.parts[number]
        begin = time.process_time()
        (part.encode() * toward[part.texts]).sum().backward()
        self.seconds.append(time.process_time() - begin)
        self.gone.append(part.tokens)


# -- the ways ---------------------------------------------------------------------------------------------


def ways(model: HierarchicalCLIP, texts: list[list[int]], context: int, part: int = PART) -> list[Way]:
    """All of them for these texts, given as tokens without padding; the authors' first, ours last."""
    room = part * context
    padded = _padded(texts, context)
    longest = max(map(len, texts))
    return [
        Way("each padded to the context length", _cut(padded, room, lambda rows: _authors(model, rows))),
        Way("cut to the longest", _cut(padded[:, :longest].contiguous(), room, model.encode_text)),
        Way("packed, beginnings repeated", _split(alone(texts), room, model)),
        Way("packed, beginnings shared", _split(pack(texts), room, model)),
    ]


def alone(texts: list[list[int]]) -> PackedTexts:
    """The texts one after the other in sequences as wide as ours, none with a part of another."""
    apart = [[-1 - i, *text[1:]] for i, text in enumerate(texts)]  # that no two begin alike
    packed = pack(apart)
    first = torch.tensor([text[0] for text in texts] or [0])
    tokens = torch.where(packed.tokens < 0, first[(-1 - packed.tokens).clamp_min(0)], packed.tokens)
    return dataclasses.replace(packed, tokens=tokens)


def _authors(model: HierarchicalCLIP, rows: Tensor) -> Tensor:
    features = model.clip.encode_text(rows)
    return features * model.text_alpha().to(features.dtype)


def _cut(tokens: Tensor, room: int, encode: Callable[[Tensor], Tensor]) -> list[Part]:
    count = max(1, round(tokens.numel() / room))
    shares = zip(tokens.tensor_split(count), torch.arange(len(tokens)).tensor_split(count), strict=True)
    return [Part(lambda rows=rows: encode(rows), texts, rows.numel()) for rows, texts in shares]


def _split(packed: PackedTexts, room: int, model: HierarchicalCLIP) -> list[Part]:
    count = max(1, round(packed.tokens.numel() / room))
    return [
        Part(lambda share=share: model.encode_text(share), texts, share.tokens.numel())
        for share, texts in packed.split(count)
    ]


def _padded(texts: Sequence[Sequence[int]], length: int) -> Tensor:
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return rows


# -- what is measured, and that it is the same --------------------------------------------------------------


def compare(model: HierarchicalCLIP, texts: list[list[int]], context: int) -> float:
    """The largest difference of any way to the authors', relative to the largest number of features or a gradient.

    Raises:
        AssertionError: it is more than rounding.
    """
    found = []
    for way in ways(model, texts, context, part=16):
        model.zero_grad()
        features = torch.zeros(len(texts), model.embed_dim)
        toward = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        for part in way.parts:
            out = part.encode()
            features[part.texts] = out.detach()
            (out * toward[part.texts]).sum().backward()
        found.append([features, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    model.zero_grad()
    assert {len(results) for results in found} == {len(found[0])}
    worst = max(
        float((x - y).abs().max() / y.abs().max().clamp_min(1e-30))
        for results in found[1:]
        for x, y in zip(results, found[0], strict=True)
    )
    assert worst < 1e-5, f"features or gradients differ by {worst:.1e} from those of padded texts"
    return worst


def measure(measured: list[Way], embed: int, texts: int, every: int) -> list[list[float]]:
    """Time parts of all ways in rounds, as many as `every` allows; returns each round's seconds a token, by way."""
    toward = torch.randn(texts, embed, generator=torch.Generator().manual_seed(2))
    rounds = max(1, len(measured[0].parts) // every)
    found = []
    for number in range(-1, rounds):
        for way in measured:
            count = len(way.parts)
            way.go(number * count // rounds if count >= rounds else number % count, toward)
        if number < 0:  # the first one warms up
            for way in measured:
                way.seconds.clear()
                way.gone.clear()
            continue
        found.append([way.seconds[-1] / way.gone[-1] for way in measured])
        print("  ".join(f"{way.seconds[-1]:.2f} s" for way in measured), flush=True)
    return found


def result(measured: list[Way], rounds: list[list[float]]) -> str:
    """The table: tokens and time of each way against the authors'."""
    base, lines = measured[0], []
    for i, way in enumerate(measured):
        fewer, faster = base.tokens / way.tokens, base.whole / way.whole
        spread = sorted(fewer * one[0] / one[i] for one in rounds)
        low, high = np.quantile(spread, [0.1, 0.9])
        lines.append(
            [
                way.name,
                f"{way.tokens:,}",
                f"{fewer:.2f}",
                f"{way.whole:.1f}",
                f"{faster:.2f}" + (f" ({low:.2f} to {high:.2f})" if i else ""),
                f"{faster / fewer:.0%}" if i else "",
            ]
        )
    head = ["texts", "tokens", "fewer", "CPU seconds", "faster (80% of rounds)", "of the tokens' ratio"]
    return table(head, lines)


def loader_costs(taxonomy: Taxonomy, taxa: np.ndarray, architecture: str) -> str:
    """What a loader spends on the texts of a batch, and on tokens of the whole taxonomy."""
    tokens = TaxonTokens(taxonomy, FORM, get_tokenizer(architecture))
    begin = time.process_time()
    tokens(taxa)
    first = time.process_time() - begin
    packing = []
    for _ in range(21):
        begin = time.process_time()
        tokens.packed(taxa)
        packing.append(time.process_time() - begin)
    begin = time.process_time()
    for part in np.array_split(np.arange(taxonomy.size), max(1, taxonomy.size // 4096)):
        tokens(part)
    whole = time.process_time() - begin + first
    return (
        f"In the loader, of one core: {1000 * statistics.median(packing):.0f} ms to pack these texts, when their "
        f"tokens are known; {first:.2f} s the first time. Tokens of all {taxonomy.size:,} taxa: {whole:.0f} s, "
        f"once a process, and {tokens.nbytes / 2**20:.0f} MiB."
    )


def card(threads: int) -> str:
    """What decides the figures."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = named[0].split(":")[1].strip() if named else platform.machine()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "open_clip_torch"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu}, {threads} of {os.cpu_count()} cores, {capability}; {versions}; {time.strftime('%Y-%m-%d')}"


def tokens_of(taxonomy: Taxonomy, taxa: np.ndarray, architecture: str) -> list[list[int]]:
    """Each text's tokens, without padding."""
    rows = TaxonTokens(taxonomy, FORM, get_tokenizer(architecture))(taxa)
    return [row[: int(row.nonzero().max()) + 1].tolist() for row in rows]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--every", type=int, default=4, help="time one of so many parts of the authors' way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{DOCUMENT.name}")
    options = parser.parse_args(arguments)
    if options.write:
        require(DOCUMENT, BEGIN, END)
    torch.set_num_threads(options.threads)
    taxonomy, source = read_taxonomy()
    rank, taxa, _ = unique_texts(draw_lineages(taxonomy, options.images))
    texts = tokens_of(taxonomy, taxa, options.architecture)
    torch.manual_seed(0)
    model = create_model(options.architecture)
    del model.clip.visual  # the text tower alone
    context = model.clip.context_length
    step = max(1, len(texts) // COMPARED)
    worst = compare(model, texts[::step], context)
    print(f"{len(texts)} texts, {worst:.1e} between the ways", flush=True)
    measured = ways(model, texts, context)
    rounds = measure(measured, model.embed_dim, len(texts), options.every)
    per_rank = ", ".join(map(str, np.bincount(rank)))
    body = (
        f"{options.images:,} images, {source}: {len(texts):,} distinct texts ({per_rank} by rank), of "
        f"{statistics.mean(map(len, texts)):.1f} tokens on average and {max(map(len, texts))} at most. "
        f"{len(rounds)} rounds: one of {options.every} parts of the first way. Features and gradients differ by at "
        f"most {worst:.0e}, relative to the largest of each.\n\n{result(measured, rounds)}\n\n"
        f"{loader_costs(taxonomy, taxa, options.architecture)}\n\n{card(options.threads)}."
    )
    print(body)
    if options.write:
        update(DOCUMENT, BEGIN, END, body)


if __name__ == "__main__":
    main()
