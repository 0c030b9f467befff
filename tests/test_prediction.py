"""predict, embed and list-taxa: which files, which answers, how they are written. Hostile: test_predict_hostile."""

import csv
import glob
import io
import json
import os
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import ARCHITECTURES, LINEAGES, picture

from bioclip_hc.cli import main
from bioclip_hc.data.decode import DecodeError
from bioclip_hc.data.prompts import Prompts
from bioclip_hc.evaluation.paths import best_paths
from bioclip_hc.evaluation.systems import System, open_system
from bioclip_hc.kernels.reference import logits
from bioclip_hc.model import create_model
from bioclip_hc.prediction.ahead import AHEAD, ahead
from bioclip_hc.prediction.inputs import Files, check_arguments
from bioclip_hc.predictor import Predictor
from bioclip_hc.taxonomy import RANKS, Taxonomy

COMMON = ["blackbird", "robin", "raven", "fox", "dog rose", ""]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model/ and photos/."""
    folder = tmp_path_factory.mktemp("prediction")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    create_model(folder / "tiny.json").save_pretrained(folder / "model")
    Taxonomy.from_lineages(LINEAGES, COMMON).save(folder / "model" / "taxonomy.json")
    (folder / "photos").mkdir()
    for i in range(9):
        (folder / "photos" / f"{i}.jpg").write_bytes(picture(i))
    return folder


@pytest.fixture(scope="module")
def system(place):
    return open_system(place / "model")


@pytest.fixture
def told():
    return []


@pytest.fixture
def predictor(place, system, told):
    return Predictor(system, cache=False, tell=told.append)


@pytest.fixture(scope="module")
def photos(place):
    return sorted((place / "photos").iterdir())


@pytest.fixture
def run(capsys, place, system, monkeypatch, tmp_path_factory):
    monkeypatch.setattr("bioclip_hc.predictor.open_system", lambda *arguments, **options: system)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def command(name, *words):
        code = main([name, "--model", str(place / "model"), *map(str, words)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return command


# -- which files --------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files, hidden ones, links that go round."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jpg",
        "a.JPG",
        "c.txt",
        "d.png",
        "s/e.webp",
        "s/t/f.jpeg",
        "s/t/g.tif",
        ".h/i.jpg",
        "s/.j.jpg",
        "s2/k.jpg",
    ):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        open(name, "w").close()
    os.symlink(".", "s/self")
    os.symlink("..", "s/t/up")
    os.symlink("../s2", "s/two")
    return tmp_path


def found(*names, **options):
    return list(Files().found(names, **options))


def test_a_folder_is_its_pictures_once_in_order(tree):
    assert found("s") == ["s/e.webp", "s/t/f.jpeg", "s/t/g.tif", "s/two/k.jpg"]
    everything = found(".")
    assert sorted(map(os.path.basename, everything)) == [
        "a.JPG",
        "b.jpg",
        "d.png",
        "e.webp",
        "f.jpeg",
        "g.tif",
        "k.jpg",
    ]
    assert everything[:3] == ["./a.JPG", "./b.jpg", "./d.png"]


def test_what_is_named_twice_is_given_once(tree):
    assert found("b.jpg", "./b.jpg", str(tree / "b.jpg")) == ["b.jpg"]
    assert found("s2", "s2/k.jpg", "s", "s2") == ["s2/k.jpg", "s/e.webp", "s/t/f.jpeg", "s/t/g.tif"]
    assert found("s/e.webp", "s")[0] == "s/e.webp"
    assert found("s/e.webp", "s").count("s/e.webp") == 1
    assert found("s", "s/gone.jpg", "c.txt")[-2:] == ["s/gone.jpg", "c.txt"]  # what a folder does not stand for


def test_a_hidden_file_is_given_when_it_is_named(tree):
    assert found("s/.j.jpg", "s")[0] == "s/.j.jpg"
    assert found("s", "s/.j.jpg")[-1] == "s/.j.jpg"
    assert found("s", "s/.*.jpg", "s/.j.jpg").count("s/.j.jpg") == 1


def test_a_file_is_given_once_through_whatever_linked_folder(tree):
    assert found("s2/k.jpg", "s/two/k.jpg", str(tree / "s" / "two" / "k.jpg")) == ["s2/k.jpg"]
    assert found("s/two/k.jpg", "s2") == ["s/two/k.jpg"]
    os.symlink("b.jpg", "other.jpg")  # another name is another file
    assert found("b.jpg", "other.jpg", "a\0b", "gone/x.jpg", "gone/x.jpg") == [
        "b.jpg", "other.jpg", "a\0b", "gone/x.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "pattern", ["*.jpg", "*/*.webp", "s/**/*.jpeg", "s?/*.jpg", "[ab].*", "**/*.png", "./*.txt", "s/t/../*.webp"]
)
def test_patterns_mean_what_the_standard_library_says(tree, pattern):
    os.remove("s/self")  # it would go round for ever
    os.remove("s/t/up")
    names = {os.path.realpath(name) for name in glob.glob(pattern, recursive=True)}
    assert {os.path.realpath(name) for name in found(pattern)} == names
    assert len(names) >= 1
    absolute = os.path.join(tree, pattern)
    assert {os.path.realpath(name) for name in found(absolute)} == names


def test_a_pattern_without_an_ending_means_pictures(tree):
    assert set(map(os.path.basename, found("**"))) == set(map(os.path.basename, found(".")))
    assert "c.txt" not in found("*")
    assert found(".h/*") == [".h/i.jpg"]


def test_a_file_that_looks_like_a_pattern_is_a_file(tree):
    open("[b].jpg", "w").close()
    assert found("[b].jpg") == ["[b].jpg"]
    assert found("[a].JPG", patterns=False) == ["[a].JPG"]  # as in a list: not there


def test_arguments_without_a_picture_are_mistakes(tree):
    os.mkdir("none")
    check_arguments(["s", "*.jpg", "gone.jpg"])
    with pytest.raises(FileNotFoundError, match="none holds no pictures"):
        check_arguments(["s", "none"])
    with pytest.raises(FileNotFoundError, match=r"no file matches \*\.gif"):
        check_arguments(["*.gif"])


def test_a_chain_of_folders_deeper_than_python_recurses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep = 1500
    try:
        for _ in range(deep):
            os.mkdir("d")
            os.chdir("d")
        open("x.jpg", "w").close()
        os.chdir(tmp_path)
        assert found("d") == ["d/" * deep + "x.jpg"]
    finally:  # which pytest could not remove
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


# -- ahead --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_keep_their_order_and_few_are_held(workers):
    taken = []
    results = ahead(lambda i: time.sleep(0.002 * (i % 3)) or i, (taken.append(i) or i for i in range(200)), workers)
    results = (result for result in results if result is not None)  # a loaded machine may pause
    for i, result in enumerate(results):
        assert result == i
        assert len(taken) <= i + 3 + (AHEAD + 1) * workers
    assert len(taken) == 200


def test_errors_come_in_their_place_and_threads_end():
    def items():
        yield from range(5)
        raise OSError("the list broke off")

    got = []
    with pytest.raises(OSError, match="broke off"):
        got.extend(ahead(lambda i: i, items(), 2))
    assert [i for i in got if i is not None] == list(range(5))
    results = (i for i in ahead(lambda i: 1 // (3 - i), iter(range(9)), 2) if i is not None)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    left = ahead(lambda i: i, iter(range(10**9)), 2)
    next(left)
    left.close()
    deadline = time.monotonic() + 30
    while any(t.name.startswith(("decode", "inputs")) for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_first_answers_need_few_photographs(predictor, photos):
    taken = []
    answers = predictor.predict((taken.append(i) or photos[i % 9] for i in range(400)), workers=1)
    next(answers)
    assert len(taken) < 20


def test_a_slow_source_holds_no_answer_back(predictor, photos):
    answered, waited_in_vain = threading.Event(), []

    def source():
        yield from photos[:5]
        waited_in_vain.append(not answered.wait(60))
        yield photos[5]

    answers = predictor.predict(source(), workers=2, batch_size=64)
    assert [next(answers).file_name for _ in range(5)] == list(map(str, photos[:5]))
    answered.set()
    assert [a.file_name for a in answers] == [str(photos[5])]
    assert waited_in_vain == [False]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_every_batch_has_the_same_shape(predictor, photos, monkeypatch, batch_size):
    encode, shapes = predictor._encode, set()
    monkeypatch.setattr(predictor, "_encode", lambda pixels: shapes.add(len(pixels)) or encode(pixels))
    together = list(predictor.embed(photos, batch_size=batch_size, workers=0))
    alone = [found for photo in photos for found in predictor.embed([photo], batch_size=batch_size)]
    for a, b in zip(together, alone, strict=True):
        assert a.file_name == b.file_name
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-6)
    for options in ({"rank": "species", "k": 9}, {"decode": "path"}, {"decode": "top-down"}, {"classes": "x,y"}):
        whole = predictor.predict(photos, batch_size=batch_size, workers=0, **options)
        single = [a for photo in photos for a in predictor.predict(photo, batch_size=batch_size, **options)]
        for a, b in zip(whole, single, strict=True):
            assert [p._replace(probability=0.0) for p in a] == [p._replace(probability=0.0) for p in b]
            assert [p.probability for p in a] == pytest.approx([p.probability for p in b], abs=1e-5)
    assert shapes == {batch_size}


# -- which answers ------------------------------------------------------------------------------------------


def scores(predictor, photos, text):
    """(N, n) logits by the reference."""
    with torch.no_grad():
        pixels = torch.stack([predictor.preprocess(Image.open(p).convert("RGB")) for p in photos])
        image = predictor.model.encode_image(pixels).float()
        space = predictor.system.space
        numbers = torch.tensor(space["scale"]), torch.tensor(space["curv"])
        return image, logits(image, text, *numbers, space["geometry"], "tangent")


def test_paths_are_those_of_evaluation(predictor, photos):
    image, _ = scores(predictor, photos, predictor.text)
    paths = best_paths(image, predictor.text, predictor.taxonomy, **predictor.system.space)
    for answers, taxa, logs in zip(
        predictor.predict(photos, decode="path"), paths.taxa, paths.log_probability, strict=True
    ):
        assert [p.taxon for p in answers] == [t for t in taxa if t >= 0]
        likely = [np.exp(x) for x, t in zip(logs, taxa, strict=True) if t >= 0]
        assert [p.probability for p in answers] == pytest.approx(likely, abs=1e-5)


@pytest.mark.parametrize("decode", ["path", "top-down", "independent"])
def test_what_is_less_probable_is_left_out(predictor, photos, decode):
    whole = list(predictor.predict(photos, decode=decode))
    for least in (0.0, 0.4, 0.6, 1.0):
        for all_of_it, some in zip(whole, predictor.predict(photos, decode=decode, min_prob=least), strict=True):
            passing = [p.probability >= least for p in all_of_it]
            kept = sum(np.cumprod(passing)) if decode != "independent" else None
            expected = all_of_it[:kept] if kept is not None else [p for p in all_of_it if p.probability >= least]
            assert [p.taxon for p in some] == [p.taxon for p in expected]
            assert some.file_name == all_of_it.file_name


def test_a_subset_leaves_its_taxa_and_what_is_above_and_below(predictor, photos, tmp_path, told):
    tables = {
        "species\nTurdus merula\nVulpes vulpes\nDraco volans\n": {"merula", "vulpes"},
        "genus,species\nTurdus,merula\nVulpes,Vulpes vulpes\n": {"merula", "vulpes"},
        "cls,genus\nAves,\n": {"merula", "migratorius", "corax"},
        "cls,Genus,class\nAves,NA,a robin\n": {"merula", "migratorius", "corax"},
        "name\nblackbird\nRosa canina\n": {"merula", "canina"},
        "kingdom,phylum,class,order,family,genus,species\nPlantae,,,,,,\n": {"canina"},
    }
    for table, species in tables.items():
        (tmp_path / "s.csv").write_text(table)
        told.clear()
        allowed = predictor.candidates(tmp_path / "s.csv")
        names = {predictor.taxonomy.name(t) for t in np.flatnonzero(allowed) if predictor.taxonomy.rank[t] == 6}
        assert names == species, table
        assert bool(told) == ("Draco" in table)
        taxa = [t for t in predictor.taxonomy.at_rank(6) if allowed[t]]
        expected = scores(predictor, photos, predictor.text[taxa])[1].softmax(1)
        for row, answers in zip(
            expected, predictor.predict(photos, rank="species", k=9, subset=allowed), strict=True
        ):
            assert {p.taxon: p.probability for p in answers} == pytest.approx(
                dict(zip(taxa, row.tolist(), strict=True)), abs=1e-5
            )
        for decode in ("path", "top-down"):
            for answers in predictor.predict(photos, decode=decode, subset=tmp_path / "s.csv"):
                assert allowed[[p.taxon for p in answers]].all()


def test_names_in_bytes_come_back_as_texts(predictor, photos):
    (found,) = predictor.predict([os.fsencode(photos[0])])
    assert found.file_name == str(photos[0])


def test_a_subset_with_two_columns_of_one_name_is_refused(predictor, tmp_path):
    for head in ("genus,genus", "genus,Genus", "name,name"):
        (tmp_path / "s.csv").write_text(f"{head}\nTurdus,Vulpes\n")
        with pytest.raises(ValueError, match=r"s\.csv has two columns '(genus|name)'.*rename"):
            predictor.candidates(tmp_path / "s.csv")


def test_a_subset_of_truth_values_is_checked(predictor, photos):
    size = predictor.taxonomy.size
    taxa = predictor.taxonomy.at_rank(6)[:2].tolist()
    chosen = [t in taxa for t in range(size)]
    for subset in (chosen, np.array(chosen)):
        (answers,) = predictor.predict(photos[:1], rank="species", k=9, subset=subset)
        assert sorted(answer.taxon for answer in answers) == taxa
    for wrong in (taxa, np.array(taxa), np.arange(size), chosen[:-1], np.array([chosen]), np.array([])):
        with pytest.raises(ValueError, match=f"truth value for each of the {size} taxa"):
            predictor.predict(photos[:1], subset=wrong)


def test_synonyms_name_taxa(place, system, tmp_path, told):
    (tmp_path / "syn.csv").write_text("synonym,accepted\nMerula merula,Turdus merula\n")
    (tmp_path / "s.csv").write_text("species\nMerula merula\n")
    predictor = Predictor(system, synonyms=tmp_path / "syn.csv", cache=False, tell=told.append)
    assert [predictor.taxonomy.path(t)[-1] for t in np.flatnonzero(predictor.candidates(tmp_path / "s.csv"))][
        -1
    ] == "merula"
    classes = predictor.classes(["Merula merula", "blackbird"], None)
    assert classes.names == ["Merula merula"]
    assert "named twice" in told[-1]


def test_classes_are_taxa_or_words(predictor, photos, told):
    names = ["blackbird", "a cat on a mat", "Aves", "Rosa canina"]
    taxonomy, tokenizer = predictor.taxonomy, predictor.system.tokenizer
    texts = [
        "an image of Animalia Chordata Aves Passeriformes Turdidae Turdus merula",
        "an image of a cat on a mat",
        "an image of Animalia Chordata Aves",
        "an image of Plantae Tracheophyta Magnoliopsida Rosaceae Rosa canina",
    ]
    with torch.no_grad():
        expected = scores(predictor, photos, predictor.model.encode_text(tokenizer(texts)))[1].softmax(1)
    for row, answers in zip(expected, predictor.predict(photos, classes=names), strict=True):
        assert {p.classification: p.probability for p in answers} == pytest.approx(
            dict(zip(names, row.tolist(), strict=True)), abs=1e-5
        )
        by_name = {p.classification: p for p in answers}
        assert by_name["blackbird"].lineage == LINEAGES[0]
        assert (by_name["Aves"].rank, by_name["a cat on a mat"].rank) == ("class", "")
        assert by_name["a cat on a mat"].to_dict()["species"] == ""
    assert told == [
        "classes: 3 taxa (1 by common name, 2 by name)",
        "classes: 1 of free words, for the taxonomy does not know them: 'a cat on a mat'",
    ]
    assert taxonomy.size == predictor.taxonomy.size


def test_classes_are_asked_for_in_the_users_own_words(predictor, photos, place, run, told, monkeypatch):
    names = ["Aves", "blackbird", "Turdus merula"]
    texts = predictor.system.tokenizer([f"an image of {name}" for name in names])
    with torch.no_grad():
        expected = scores(predictor, photos, predictor.model.encode_text(texts))[1].softmax(1)
    for row, answers in zip(expected, predictor.predict(photos, classes=names, as_words=True), strict=True):
        by_name = {p.classification: p.probability for p in answers}
        assert by_name == pytest.approx(dict(zip(names, row.tolist(), strict=True)), abs=1e-5)
        assert all(p.rank == "" and p.taxon == -1 for p in answers)
    assert not told
    line = json.loads(run("predict", photos[0], "--classes", "cat/dog,", "--format", "json"))
    assert (line["classification"], line["score"]) == ("cat/dog", 1)
    out = run("predict", photos[0], "--classes", ",".join(names), "--as-words", "--format", "json")
    assert {json.loads(line)["rank"] for line in out.splitlines()} == {""}
    (embedded,) = run("embed", "--texts", "Aves,", "--as-words").splitlines()
    np.testing.assert_allclose(
        json.loads(embedded)["embedding"],
        predictor.embed_classes(predictor.classes(["Aves"], None, as_words=True))[0],
        atol=1e-6,
    )


def test_embeddings_of_classes_are_not_kept(system, photos, tmp_path):
    predictor = Predictor(system, cache=tmp_path, tell=str)
    for classes in ("Aves,a cat", "a dog,"):
        list(predictor.predict(photos[:1], classes=classes))
    assert not list(tmp_path.iterdir())
    list(predictor.predict(photos[:1]))
    assert len(list(tmp_path.iterdir())) == 1


def test_bins_are_sums_of_their_classes(predictor, photos, tmp_path):
    (tmp_path / "b.csv").write_text("class,bin\nTurdus,bird\nRosa canina,plant\nCorvus corax,bird\na stone,none\n")
    single = list(predictor.predict(photos, classes=["Turdus", "Rosa canina", "Corvus corax", "a stone"]))
    for classes, answers in zip(single, predictor.predict(photos, bins=tmp_path / "b.csv"), strict=True):
        p = {c.classification: c.probability for c in classes}
        sums = {"bird": p["Turdus"] + p["Corvus corax"], "plant": p["Rosa canina"], "none": p["a stone"]}
        assert {a.classification: a.probability for a in answers} == pytest.approx(sums)
        assert [a.probability for a in answers] == sorted(sums.values(), reverse=True)
    top = list(predictor.predict(photos, bins=tmp_path / "b.csv", k=1, min_prob=0.2))
    assert all(len(answers) == 1 for answers in top)


def test_words_of_an_ensemble_are_those_of_the_system(system, photos):
    many = Predictor(
        system.__class__(**{**vars_of(system), "prompts": Prompts(("a {}", "the {}"))}), cache=False, tell=str
    )
    text = many.embed_classes(many.classes(["a toad", "frog"], None))
    with torch.no_grad():
        each = [system.model.encode_text(system.tokenizer([f"{w} a toad", f"{w} frog"])) for w in ("a", "the")]
    torch.testing.assert_close(text, sum(each) / 2, atol=1e-5, rtol=0)


def vars_of(system):
    return {name: getattr(system, name) for name in System.__dataclass_fields__}


def test_images_and_workers_and_batches_change_nothing(predictor, photos):
    expected = [a[-1].taxon for a in predictor.predict(photos)]
    pictures = [Image.open(path) for path in photos]
    for options in ({"workers": 0}, {"workers": 3, "batch_size": 2}, {"batch_size": 1}):
        assert [a[-1].taxon for a in predictor.predict(pictures, **options)] == expected
        assert [a.file_name for a in predictor.predict(photos, **options)] == list(map(str, photos))


def test_a_picture_is_the_same_opened_as_in_its_file(predictor, tmp_path):
    left = Image.open(io.BytesIO(picture(3))).crop((0, 0, 20, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    left.save(tmp_path / "turned.jpg", exif=exif)
    left.save(tmp_path / "turned.png", exif=exif)
    grey = np.linspace(0, 65535, 32 * 20).astype(np.uint16).reshape(32, 20)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    left.putalpha(Image.linear_gradient("L").resize(left.size))
    left.save(tmp_path / "glass.png")
    left.convert("P").save(tmp_path / "palette.png", transparency=3)
    names = sorted(tmp_path.iterdir())
    assert len(names) == 5
    files = [found.vector for found in predictor.embed(names)]
    opened = [found.vector for found in predictor.embed([Image.open(name) for name in names])]
    np.testing.assert_allclose(opened, files, atol=1e-6)
    told = []
    assert not list(predictor.embed([Image.new("RGB", (1, 999))], on_error=lambda _, error: told.append(error)))
    assert isinstance(told[0], DecodeError)


# -- how they are written -----------------------------------------------------------------------------------


def test_four_formats_say_the_same(run, place, tmp_path):
    words = ("predict", place / "photos", "--rank", "order", "--k", "2", "--min-prob", "0.3")
    lines = [json.loads(line) for line in run(*words, "--format", "json").splitlines()]
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv"))))
    table = run(*words)
    assert len(lines) == len(rows) >= 9
    for line, row in zip(lines, rows, strict=True):
        assert {**row, "score": float(row["score"]) if row["score"] else None} == line
        assert f"{line['score']:6.1%}  {line['order']}" in table if line["rank"] else "no answer" in table
    parquet = pytest.importorskip("pyarrow.parquet")
    run(*words, "--format", "parquet", "--output", tmp_path / "p.parquet")
    assert parquet.read_table(tmp_path / "p.parquet").to_pylist() == lines


def test_the_name_of_the_output_says_its_format(run, place, tmp_path):
    for name, form in {"o.csv": "csv", "o.JSON": "json", "o.txt": "table", "o": "table"}.items():
        words = ("predict", place / "photos", "--rank", "order")
        run(*words, "--output", tmp_path / name)
        assert (tmp_path / name).read_text() == run(*words, "--format", form)
    run("list-taxa", "--output", tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == run("list-taxa", "--format", "json")
    run("list-taxa", "--output", tmp_path / "t.csv", "--format", "table")
    assert (tmp_path / "t.csv").read_text() == run("list-taxa", "--format", "table")


def test_an_image_without_an_answer_has_its_line(run, place):
    words = ("predict", place / "photos", "--rank", "species", "--min-prob", "1")
    lines = [json.loads(line) for line in run(*words, "--format", "json").splitlines()]
    assert len(lines) == 9
    assert all(line["score"] is None and line["rank"] == line["species"] == "" for line in lines)
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv"))))
    assert [row["score"] for row in rows] == [""] * 9
    assert run(*words).count("\n  no answer\n") == 9
    for options in (("--bins", place / "b.csv"), ("--classes", "x,y,z,u,v,w")):
        (place / "b.csv").write_text("class,bin\nx,1\ny,2\nz,3\nu,4\nv,5\nw,6\n")
        assert run("predict", place / "photos", *options, "--min-prob", "1").count("no answer") == 9


def test_classes_and_bins_in_formats(run, place, tmp_path):
    (tmp_path / "c.txt").write_text("\ufeffraven\n\na stone\nAves\n", encoding="utf-8")
    photo = place / "photos" / "1.jpg"
    lines = [
        json.loads(x) for x in run("predict", photo, "--cls", tmp_path / "c.txt", "--format", "json").splitlines()
    ]
    assert list(lines[0]) == ["file_name", "classification", *RANKS, "common_name", "rank", "score"]
    raven = next(line for line in lines if line["classification"] == "raven")
    assert (raven["genus"], raven["species"], raven["common_name"]) == ("Corvus", "corax", "raven")
    table = run("predict", photo, "--classes", tmp_path / "c.txt")
    assert "raven  [species Corvus corax]" in table
    (tmp_path / "b.csv").write_text("class,bin\nraven,=bird\na stone,none\n")
    assert run("predict", photo, "--bins", tmp_path / "b.csv", "--format", "csv").count("'=bird,0.") == 1


def test_a_record_says_what_it_was_made_with(run, place, tmp_path):
    for name in ("log.json", "log.txt", "log.txt"):
        run("predict", place / "photos", "--rank", "genus", "--log", tmp_path / name)
    said = json.loads((tmp_path / "log.json").read_text())
    assert (said["answered"], said["left_out"], said["options"]["rank"]) == (9, 0, "genus")
    assert said["system"]["prompts"]["templates"] == ["an image of {}"]
    assert said["taxa"]["sha256"] == Taxonomy.from_lineages(LINEAGES).sha256
    assert (tmp_path / "log.txt").read_text().count("answered: 9\n") == 2


def test_embeddings_in_four_formats(run, place, tmp_path):
    words = ("embed", place / "photos", "--output")
    run(*words, tmp_path / "e.npz")
    run(*words, tmp_path / "e.csv")
    run(*words, tmp_path / "e", "--format", "json")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as content:
        names, vectors = content["file_name"].tolist(), content["embedding"]
    assert (vectors.dtype, vectors.shape) == (np.float32, (9, 16))
    rows = list(csv.reader((tmp_path / "e.csv").open()))
    assert rows[0] == ["file_name", *(f"embedding_{i}" for i in range(16))]
    lines = [json.loads(line) for line in (tmp_path / "e").read_text().splitlines()]
    assert names == [row[0] for row in rows[1:]] == [line["file_name"] for line in lines]
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], np.float32), vectors)
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), vectors)
    parquet = pytest.importorskip("pyarrow.parquet")
    run(*words, tmp_path / "e.parquet")
    assert np.array_equal(parquet.read_table(tmp_path / "e.parquet")["embedding"].to_pylist(), vectors)


def test_embeddings_of_taxa_and_words(run, place, predictor, tmp_path):
    run("embed", "--taxa", "--output", tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as content:
        np.testing.assert_allclose(content["embedding"], predictor.text.numpy(), atol=1e-6)
        assert content["species"][-1] == predictor.taxonomy.name(predictor.taxonomy.size - 1)
    lines = [json.loads(line) for line in run("embed", "--texts", "raven,a cat").splitlines()]
    assert [line["text"] for line in lines] == ["raven", "a cat"]
    taxon = predictor.names.find(["raven"]).taxon
    np.testing.assert_allclose(lines[0]["embedding"], predictor.text[taxon].numpy(), atol=1e-5)


def test_taxa_are_listed(run):
    rows = list(csv.DictReader(io.StringIO(run("list-taxa"))))
    assert len(rows) == Taxonomy.from_lineages(LINEAGES).size
    assert rows[-1]["common_name"] == "fox"
    below = list(csv.DictReader(io.StringIO(run("list-tol-taxa", "--below", "Turdidae", "--rank", "species"))))
    assert [row["species"] for row in below] == ["merula", "migratorius"]
    assert "genus    Animalia > Chordata > Aves > Passeriformes > Turdidae > Turdus\n" in run(
        "list-taxa", "--below", "Turdus", "--format", "table"
    )


def test_published_systems_are_listed(capsys):
    assert main(["list-models"]) == 0
    assert "bioclip " in capsys.readouterr().out
