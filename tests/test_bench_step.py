"""The ways of bench_step.py compute what they claim: the peers' formulas, the same towers, the same features."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from bioclip_hc import LevelContrastiveLoss
from bioclip_hc.data.synthetic import evolve
from bioclip_hc.taxonomy import RANKS, Taxonomy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
towers, bench_step = map(importlib.import_module, ("towers", "bench_step"))

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "bench-step-tiny.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    taxonomy = Taxonomy.from_lineages(evolve(0, 60).lineages)
    taxa = towers.draw_lineages(taxonomy, 24)
    return towers.StepProblem(path.stem, taxonomy, "synthetic", taxa, torch.device("cpu"))


@pytest.mark.parametrize("name", towers.WAYS)
def test_every_way_has_the_same_towers_and_features(problem, name):
    way = towers.WAYS[name](problem)
    towers.check_towers(way)
    forward = way.step()
    assert towers.check_features(way, forward) < 1e-5
    assert len(forward.text) == len(way.rows)
    found = towers.gradients(way, lambda: way.step().loss)
    unused = {"image_alpha", "text_alpha"} if "euclidean" in name else set()
    assert len(found) == len(towers.trained(way)) - len(unused & set(dict(way.model.named_parameters())))
    assert all(g.isfinite().all() for g in found)
    text = torch.nn.functional.normalize(way.text(), dim=1)
    torch.testing.assert_close(text, torch.nn.functional.normalize(forward.text, dim=1), rtol=0, atol=1e-6)


def test_changed_towers_and_features_are_noticed(problem):
    way = towers.Ours(problem)
    forward = way.step()
    with pytest.raises(AssertionError, match="features differ"):
        towers.check_features(way, forward._replace(text=forward.text.flip(0)))
    with pytest.raises(AssertionError, match="features differ"):
        towers.check_features(way, forward._replace(image=forward.image + 0.01))
    weight = way.model.clip.text_projection
    with torch.no_grad():
        weight[0, 0] += 1e-3
        with pytest.raises(AssertionError, match="text_projection"):
            towers.check_towers(way)
        weight.copy_(problem.weights["text_projection"])
    towers.check_towers(way)


def test_the_authors_loss_is_reference_code(problem):
    generator = torch.Generator().manual_seed(1)
    image_taxa, text_rank, text_taxon = problem.labels
    shapes = [(len(image_taxa), 16), (len(text_rank), 16), (1,), (1,)]
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) / 4 for shape in shapes[:2]]
    inputs += [torch.tensor([14.3], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)]
    for x in inputs:
        x.requires_grad_()
    image, text, scale, curv = inputs
    own = towers.Authors(problem).own
    assert torch.equal(text_taxon[own], image_taxa)
    assert len(text_rank) < image_taxa.numel(), "no text has two images, so that averaging is not tried"
    theirs = towers.authors_loss(image, text, own, text_rank, scale, curv)
    objective = LevelContrastiveLoss.reference_code(backend="reference")
    ours = objective(image, text, image_taxa, text_rank, text_taxon, scale, curv).loss
    torch.testing.assert_close(theirs.squeeze(), ours, rtol=1e-10, atol=0)
    for mine, other in zip(*(torch.autograd.grad(loss, inputs) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)


def test_the_authors_step_is_reference_code_on_ours(problem):
    ours, authors = towers.Ours(problem), towers.Authors(problem)
    ours.objective = LevelContrastiveLoss.reference_code()
    torch.testing.assert_close(authors.step().loss.squeeze(), ours.step().loss, rtol=1e-4, atol=0)


def test_open_clip_at_cut_length_equals_padded(problem):
    padded, cut = towers.OpenClip(problem), towers.OpenClipCut(problem)
    assert cut.tokens.shape[1] < padded.tokens.shape[1] == 77
    torch.testing.assert_close(cut.text(), padded.text(), rtol=0, atol=1e-5)
    both = zip(*(towers.gradients(way, lambda way=way: way.step().loss) for way in (padded, cut)), strict=True)
    for full, short in both:
        torch.testing.assert_close(full, short, rtol=1e-4, atol=1e-5)


def test_token_counts(problem):
    images, texts = len(problem.image_taxa), len({(r, t) for row in problem.image_taxa for r, t in enumerate(row)})
    expected = {"open_clip": images, "open_clip, cut length": images, "authors' way": texts, "bioclip_hc": texts}
    for name, n in expected.items():
        counts = towers.WAYS[name](problem).counts()
        assert counts["texts"] == n
        assert counts["tokens"] == counts["sequences"] * counts["length"]
        if name != "bioclip_hc":
            assert counts["sequences"] == n
            assert (counts["length"] == 77) == (name != "open_clip, cut length")
    beginnings = {tuple(row[: i + 1]) for row in problem.padded.tolist() for i in range(77) if row[i]}
    assert (
        len(beginnings) <= towers.Ours(problem).counts()["tokens"] < texts * int((problem.padded != 0).sum(1).max())
    )


class Benchmark:
    """What a suite needs of pytest-benchmark's fixture."""

    def __init__(self):
        self.group, self.extra_info, self.timed = None, {}, 0

    def pedantic(self, call, rounds, iterations):
        self.timed += rounds * iterations
        return [call() for _ in range(rounds)][-1]


def test_a_step_is_warm_when_it_is_measured_and_its_group_names_the_batch(problem, monkeypatch):
    benchmark, calls = Benchmark(), []
    way = bench_step.describe(benchmark, "training step", problem, bench_step.BASE)
    assert benchmark.group.endswith(", 24 images, synthetic")
    assert benchmark.extra_info["base"]
    assert benchmark.extra_info["texts"] == len(way.rows)
    for rounds in (0, 2):
        calls.clear()
        benchmark.timed = 0
        monkeypatch.setattr(bench_step, "ROUNDS", rounds)
        monkeypatch.setattr(bench_step, "DEVICE", torch.device("cpu"))
        bench_step.measure(benchmark, lambda: calls.append(0) or ())
        assert (benchmark.timed, len(calls)) == ((1, 2) if rounds == 0 else (2, 4))


def test_without_the_variable_taxa_are_made(monkeypatch):
    monkeypatch.delenv("BIOCLIP_HC_DATA", raising=False)
    assert towers.read_taxonomy()[1] == "synthetic, 500 species"


def test_lineages_follow_zipfs_law_and_are_complete():
    taxonomy = Taxonomy.from_lineages(evolve(0, 300).lineages)
    complete = (taxonomy.lineages >= 0).all(1)
    assert complete.sum() < (taxonomy.rank == len(RANKS) - 1).sum()  # some species lack a rank
    taxa = towers.draw_lineages(taxonomy, 20_000)
    assert (taxa >= 0).all()
    assert np.array_equal(taxa, taxonomy.lineages[taxa[:, -1]])
    count = np.sort(np.bincount(taxa[:, -1]))[::-1]
    harmonic = (1 / np.arange(1, complete.sum() + 1)).sum()
    assert count[:3] / 20_000 == pytest.approx(1 / np.array([1, 2, 3]) / harmonic, rel=0.1)
    assert np.array_equal(taxa, towers.draw_lineages(taxonomy, 20_000))
