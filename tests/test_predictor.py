"""Names for photographs: probabilities, both decoders, and mistakes."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import ARCHITECTURES, LINEAGES, picture

from bioclip_hc.data.decode import DecodeError
from bioclip_hc.kernels.reference import logits
from bioclip_hc.model import create_model
from bioclip_hc.predictor import Predictor
from bioclip_hc.taxonomy import RANKS, Taxonomy


@pytest.fixture(scope="module", params=["lorentz", "euclidean"])
def predictor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    model = create_model(folder / "tiny.json", geometry=request.param)
    model.save_pretrained(folder / "model")
    Taxonomy.from_lineages(LINEAGES, [f"common {i}" for i in range(len(LINEAGES))]).save(
        folder / "model/taxonomy.json"
    )
    return Predictor(folder / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return sorted(folder.iterdir())


def test_probabilities_are_a_softmax_over_the_taxa_of_a_rank(predictor, photos):
    tax = predictor.taxonomy
    r = RANKS.index("species")
    taxa = tax.at_rank(r)
    answers = list(predictor.predict(photos, rank="species", k=len(taxa)))
    with torch.no_grad():
        pixels = torch.stack([predictor.preprocess(Image.open(p).convert("RGB")) for p in photos])
        image = predictor.model.encode_image(pixels)
        one = torch.tensor(predictor.model.manifold.curv.item())
        scale = predictor.model.logit_scale().squeeze()
        space = (scale, one, predictor.model.geometry, "tangent")
        expected = logits(image, predictor.text[taxa], *space).softmax(1).numpy()
    for row, found in zip(expected, answers, strict=True):
        assert sorted(p.taxon for p in found) == taxa.tolist()
        assert [p.probability for p in found] == sorted((p.probability for p in found), reverse=True)
        by_taxon = {p.taxon: p.probability for p in found}
        np.testing.assert_allclose([by_taxon[t] for t in taxa.tolist()], row, atol=1e-5)
        assert sum(by_taxon.values()) == pytest.approx(1, abs=1e-5)


def test_top_down_follows_the_tree(predictor, photos):
    for found in predictor.predict(photos, decode="top-down"):
        assert found[0].rank == "kingdom"
        for above, below in itertools.pairwise(found):
            assert predictor.taxonomy.parent[below.taxon] == above.taxon


def test_all_ranks_by_default_with_names(predictor, photos):
    (found,) = predictor.predict(photos[:1])
    assert [p.rank for p in found] == list(RANKS)
    last = found[-1].to_dict()
    assert last["file_name"] == str(photos[0])
    assert last["species"]
    assert last["common_name"].startswith("common ")
    assert found[0].lineage[1:] == ("",) * 6  # a kingdom says nothing of what is below it


def test_batches_change_nothing(predictor, photos):
    whole, single = (list(predictor.predict(photos, batch_size=size)) for size in (64, 1))
    for a, b in zip(whole, single, strict=True):
        assert [p.taxon for p in a] == [p.taxon for p in b]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "Species"}, "unknown rank 'Species'; did you mean 'species'"),
        ({"decode": "beam"}, "decode must be"),
        ({"decode": "top-down", "k": 2}, "one answer per rank"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_mistakes(predictor, photos, options, message):
    with pytest.raises(ValueError, match=message):
        list(predictor.predict(photos, **options))


def test_one_name_is_looked_at_as_on_the_command_line(predictor, photos):
    def names(images):
        return [found.file_name for found in predictor.embed(images)]

    folder = photos[0].parent
    everything = [str(photo) for photo in photos]
    assert names(photos[1]) == names(str(photos[1])) == names([photos[1]]) == everything[1:2]
    assert names(folder) == names(str(folder)) == names(f"{folder}/*.jpg") == everything
    assert names(Image.open(photos[0])) == [""]
    assert [a.file_name for a in predictor.predict(folder, rank="genus")] == everything
    for wrong in (folder / "*.png", str(folder / "**" / "x?.jpg")):
        with pytest.raises(FileNotFoundError, match="no file matches"):
            predictor.predict(wrong)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        list(predictor.predict(folder / "gone.jpg"))
    with pytest.raises(TypeError, match="images must be a file"):
        predictor.predict(7)


def test_unreadable_picture_is_named(predictor, tmp_path):
    (tmp_path / "x.jpg").write_text("<html>")
    with pytest.raises(DecodeError, match=r"x\.jpg"):
        list(predictor.predict([tmp_path / "x.jpg"]))


def test_a_model_without_taxonomy_asks_for_one(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="name a table of taxa"):
        Predictor(tmp_path / "bare").predict([])
    assert Predictor(tmp_path / "bare", predictor.taxonomy).taxonomy is predictor.taxonomy
