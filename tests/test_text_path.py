"""The ways of text_path.py hold the same texts, are compared before they are timed, and come out in one table."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from bioclip_hc.data.synthetic import evolve
from bioclip_hc.taxonomy import Taxonomy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
text_path = importlib.import_module("text_path")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEXTS = [[1, 2, 9], [1, 2, 3, 9], [1, 2, 3, 4, 9], [1, 5, 9], [1, 2, 3, 9, 9]]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "text-path-tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def test_every_way_holds_every_text_once(tiny):
    model = text_path.create_model(tiny)
    for way in text_path.ways(model, TEXTS, 77, part=2):
        assert sorted(torch.cat([part.texts for part in way.parts]).tolist()) == list(range(len(TEXTS)))
        assert way.tokens >= len({tuple(text[: i + 1]) for text in TEXTS for i in range(len(text))})
    apart = text_path.alone(TEXTS)
    assert [[t for t in row if t] for row in apart.padded().tolist()] == TEXTS
    assert len(apart.node[apart.node >= 0].unique()) == sum(map(len, TEXTS))


def test_another_result_is_noticed(tiny, monkeypatch):
    model = text_path.create_model(tiny)
    assert text_path.compare(model, TEXTS, 77) < 1e-5
    authors = text_path._authors
    monkeypatch.setattr(text_path, "_authors", lambda model, rows: authors(model, rows) * 1.0001)
    with pytest.raises(AssertionError, match=r"features or gradients differ by 1\.0e-04"):
        text_path.compare(model, TEXTS, 77)


def test_a_small_run(tiny, tmp_path, monkeypatch):
    tree = Taxonomy.from_lineages(evolve(0, 60).lineages)
    monkeypatch.setattr(text_path, "read_taxonomy", lambda: (tree, "a small tree"))
    document = tmp_path / "text.md"
    document.write_text(f"before\n\n{text_path.BEGIN}\n{text_path.END}\nafter\n")
    monkeypatch.setattr(text_path, "DOCUMENT", document)
    before = torch.get_num_threads()
    text_path.main(["--images", "80", "--every", "2", "--architecture", str(tiny), "--write"])
    torch.set_num_threads(before)
    written = document.read_text()
    assert written.startswith("before")
    assert written.endswith("after\n")
    assert "80 images, a small tree: " in written
    lines = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| ")][2:]
    assert [line[0] for line in lines] == [
        "each padded to the context length",
        "cut to the longest",
        "packed, beginnings repeated",
        "packed, beginnings shared",
    ]
    tokens = [int(line[1].replace(",", "")) for line in lines]
    assert tokens == sorted(tokens, reverse=True)
    assert [float(line[2]) for line in lines] == [pytest.approx(tokens[0] / n, abs=0.01) for n in tokens]
    assert all(float(line[3]) >= 0 for line in lines)
    assert " ms to pack these texts" in written
