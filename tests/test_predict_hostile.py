"""predict, embed and list-taxa on what nobody should give them: files, names, tables, places to write."""

import csv
import functools
import gzip
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from faults.specimens import all_of_them
from PIL import Image
from small_run import ARCHITECTURES, LINEAGES, environment, picture

from bioclip_hc.cli import main, parser
from bioclip_hc.data.decode import DecodeError
from bioclip_hc.evaluation.systems import open_system
from bioclip_hc.model import create_model
from bioclip_hc.prediction.writers import FORMULA
from bioclip_hc.predictor import Predictor
from bioclip_hc.taxonomy import RANKS, Taxonomy

COMMON = ["blackbird", "robin", "raven", "fox", "dog rose", ""]
HOMONYMS = [  # Oenanthe is a bird and a plant, and "robin" two birds
    *LINEAGES,
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe"),
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "crocata"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Erithacus", "rubecula"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model/, which knows homonyms, bare/, which knows no taxon, and photo.jpg."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    model = create_model(folder / "tiny.json")
    for name in ("model", "bare"):
        model.save_pretrained(folder / name)
    Taxonomy.from_lineages(HOMONYMS, [*COMMON, "wheatear", "", "Robin"]).save(folder / "model" / "taxonomy.json")
    (folder / "photo.jpg").write_bytes(picture(0))
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("bioclip_hc.predictor.open_system", opened)
    torch.set_num_threads(1)


@functools.cache
def opened(name, **options):
    """The model of the commands here, read once."""
    return open_system(name, **options)


@pytest.fixture
def run(capfd, place):
    """A command on place/model: (code, stdout, stderr)."""

    def command(name, *words, model="model"):
        code = main([name, "--model", str(place / model), *map(str, words)])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return command


def refused(result, message):
    """The result is a mistake to mend, told in plain letters."""
    code, out, err = result
    assert code == 2, err
    assert err.startswith("bioclip-hc: ")
    assert re.search(message, err), err
    assert all(c.isprintable() or c == "\n" for c in err)
    assert not out


# -- pictures -----------------------------------------------------------------------------------------------


@functools.cache
def pictures():
    """Of every kind of specimen: file name -> bytes, and pattern of why they cannot be read, "" where they can."""
    found = {}
    for number, specimen in enumerate(kind for kind in all_of_them() if not kind.heavy):
        data = specimen.make()
        if specimen.where != "picture":  # a whole archive where a photograph should be
            found[f"{number:03}.jpg"] = (data, ".")
            continue
        with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as archive:
            for member in archive:
                key, _, ending = member.name.rpartition(".")
                if ending.lower() in ("jpg", "jpeg", "png", "webp"):
                    reason = dict(specimen.unread).get(key, "")
                    found[f"{number:03}-{key}.{ending}"] = (archive.extractfile(member).read(), reason)
    return found


def test_every_kind_of_picture_is_answered_or_told(run, tmp_path):
    for name, (data, _) in pictures().items():
        (tmp_path / name).write_bytes(data)
    code, out, err = run("predict", tmp_path, "--format", "json", "--rank", "species")
    answered = {os.path.basename(json.loads(line)["file_name"]) for line in out.splitlines()}
    assert answered == {name for name, (_, reason) in pictures().items() if not reason}
    told = dict(re.findall(r"left out .*/([^/:\n]+): (.*)", err))
    assert told.keys() == pictures().keys() - answered
    for name, (_, reason) in pictures().items():
        assert not reason or re.search(reason, told[name]), (name, told[name])
    assert len(err.splitlines()) == len(told) + 1  # no warning of a decoder
    assert (code, len(pictures()) > 180, len(told) > 100) == (1, True, True)


def odd_files(folder):
    """name -> part of the reason; files that are no photographs, by what they are."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "self.jpg").symlink_to("self.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.jpg"))
    (folder / "empty.jpg").touch()
    (folder / "large.jpg").write_bytes(picture(0))
    os.truncate(folder / "large.jpg", 65 << 20)
    (folder / "scan.tif").write_bytes(b"II*\0" + bytes(100))
    return {
        "pipe.jpg": "no regular file",
        "zero.jpg": "no regular file",
        "nowhere.jpg": "No such file",
        "self.jpg": "Too many levels",
        "socket.jpg": "no regular file",
        "empty.jpg": "zero bytes",
        "large.jpg": "larger than 64 MiB",
        "scan.tif": "not JPEG, PNG, WEBP",
    }


def test_what_is_no_file_is_told_and_never_waited_for(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    (tmp_path / "p").mkdir()
    os.chdir("p")
    reasons = odd_files(type(tmp_path)())
    os.chdir("..")
    (tmp_path / "p" / "good.jpg").write_bytes(picture(1))
    (tmp_path / "p" / "loop").symlink_to(".")
    (tmp_path / "p" / "up").symlink_to("..")
    code, out, err = run("predict", "p", "gone.jpg", "a\0b.jpg", "--format", "json", "--rank", "genus")
    assert code == 1
    assert [json.loads(line)["file_name"] for line in out.splitlines()] == ["p/good.jpg"]
    for name, reason in {**reasons, "gone.jpg": "No such file"}.items():
        assert re.search(f"left out (p/)?{name}: .*{reason}", err), (name, err)
    assert "null" in err
    assert f"{len(reasons) + 2} of {len(reasons) + 3} images left out" in err


def test_nothing_readable_is_code_1(run, place, tmp_path):
    (tmp_path / "x.jpg").write_text("<html>")
    for form in ("table", "json", "csv"):
        code, out, err = run("predict", tmp_path / "x.jpg", "--format", form)
        assert code == 1
        assert "1 of 1 images left out" in err
        assert out == (
            ",".join(["file_name", *RANKS, "common_name", "rank", "score"]) + "\n" if form == "csv" else ""
        )
    code, _, _ = run("embed", tmp_path / "x.jpg", "--output", tmp_path / "e.npz")
    assert code == 1
    with np.load(tmp_path / "e.npz") as content:
        assert len(content["file_name"]) == len(content["embedding"]) == 0


# -- names --------------------------------------------------------------------------------------------------

NAMES = [
    b"a\nb.jpg", b"\r\n.jpg", b'"quoted".jpg', b"it's.jpg", b"comma,semi;colon.jpg", b"tab\there.jpg",
    b"\xff\xfe.jpg", b"caf\xe9.jpg", b"\xed\xa0\x80.jpg", "cafe\u0301.jpg".encode(), "caf\u00e9.jpg".encode(),
    b"\x1b[2J\x1b[31mred.jpg", b"\x1b]0;title\x07.jpg", "\u202egpj.exe.jpg".encode(), "\u2028line.jpg".encode(),
    "\x9b31m.jpg".encode(), "\U0001f98a.jpg".encode(), b"=1+1.jpg", b"+1.jpg", b"-n.jpg", b"--help.jpg",
    b"@SUM(1).jpg", b"=cmd|' C calc'!A0.jpg", b"%s%n.jpg", b"{0}.jpg", b"$(id).jpg", b"`id`.jpg",
    b"a b  c.jpg", b" lead.jpg",
    b"[ab].jpg", b"*.jpg", b"?.jpg", b"**.jpg", b"\\x.jpg", b"\\n.jpg", b"null.jpg", b"x" * 251 + b".jpg",
    b"<script>alert(1)<script>.jpg", b"&amp;.jpg", b"#.jpg", b"~.jpg", b"\x7f.jpg", b"\x01.jpg",
    "\ufeffbom.jpg".encode(),
]  # fmt: skip


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    for name in NAMES:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(picture(2))
    return folder


def names_of(paths):
    return sorted(os.fsencode(path).rpartition(b"/")[2] for path in paths)


def test_names_come_back_from_json(run, odd_names):
    code, out, _ = run("predict", odd_names, "--rank", "kingdom", "--format", "json")
    assert code == 0
    assert out.isprintable() or all(line.isprintable() for line in out.split("\n"))
    assert names_of(json.loads(line)["file_name"] for line in out.split("\n") if line) == sorted(NAMES)


def test_names_come_back_from_csv_and_none_is_a_formula(run, monkeypatch, odd_names):
    monkeypatch.chdir(odd_names)
    words = ["./" + os.fsdecode(name) if name.startswith(b"-") else os.fsdecode(name) for name in NAMES]
    code, out, _ = run("predict", *words, "--rank", "kingdom", "--format", "csv")
    assert code == 0
    rows = list(csv.reader(io.StringIO(out, newline="")))
    found = [row[0] for row in rows[1:]]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert not any(name.startswith(FORMULA) for name in found)
    plain = [os.path.normpath(name) for name in found]
    assert plain == [os.fsdecode(name).encode("utf-8", "backslashreplace").decode() for name in NAMES]


def test_a_table_obeys_no_name(run, odd_names):
    code, out, err = run("predict", odd_names, "--rank", "kingdom")
    assert code == 0
    assert len(out.splitlines()) == 2 * len(NAMES)
    assert all(line.isprintable() for line in out.split("\n"))
    assert not err


def test_names_in_parquet(run, odd_names, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    code, _, _ = run(
        "predict", odd_names, "--k", "2", "--rank", "kingdom", "--format", "parquet", "--output", tmp_path / "p"
    )
    assert code == 0
    found = parquet.read_table(tmp_path / "p").to_pydict()
    assert len(set(found["file_name"])) == len(NAMES)
    assert found["rank"] == ["kingdom"] * 2 * len(NAMES)
    assert sum(found["score"]) == pytest.approx(len(NAMES), abs=1e-4)


def test_unreadable_files_are_told_in_plain_letters(run, tmp_path):
    folder = os.fsencode(tmp_path)
    for name in NAMES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"\x1b[2J<html>")
    code, _, err = run("predict", tmp_path)
    assert code == 1
    assert len(err.splitlines()) == len(NAMES) + 1
    assert all(c.isprintable() or c == "\n" for c in err)


def test_lists_of_names(run, monkeypatch, odd_names, tmp_path):
    monkeypatch.chdir(odd_names)
    lined = [name for name in NAMES if not set(name) & set(b"\r\n")]
    (tmp_path / "lines").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lined) + b"\n\n")
    (tmp_path / "zeros").write_bytes(b"\0".join(NAMES) + b"\0")
    for expected, words in ((lined, ["lines"]), (NAMES, ["zeros", "--null"])):
        _, out, err = run(
            "predict", "--from", tmp_path / words[0], *words[1:], "--rank", "kingdom", "--format", "json"
        )
        assert names_of(json.loads(line)["file_name"] for line in out.split("\n") if line) == sorted(expected), err
    refused(run("predict", "--from", tmp_path / "zeros"), "no list of names")
    refused(run("predict", "--from", "/dev/zero"), "no list of names")
    refused(run("predict", "--from", "no"), "does not exist")
    refused(run("predict"), "no images")
    (tmp_path / "none").write_bytes(b"\n\r\n")
    for words in (["predict"], ["predict", "--workers", "0"], ["embed"]):
        refused(run(*words, "--from", tmp_path / "none"), "no images: the list is empty")


# -- tables and models --------------------------------------------------------------------------------------

CLASSES = {
    "empty": (b"", "names no class"),
    "blank lines": (b"\n \n\t\n", "names no class"),
    "not UTF-8": (b"caf\xe9\n", "not UTF-8"),
    "UTF-16": ("Aves\n".encode("utf-16"), "not UTF-8"),
    "a homonym": (b"Turdus\nOenanthe\n", "line 2: name 'Oenanthe' is ambiguous: Animalia > .* \\| Plantae > "),
    "a common name of two": (b"ROBIN\n", "line 1: name 'ROBIN' is ambiguous"),
    "a line without end": (b"x" * (1 << 20), "no list of classes"),
    "a picture": (picture(0), "not UTF-8"),
}
BINS = {
    "empty": (b"", "must have two columns"),
    "header only": (b"class,bin\n", "names no class"),
    "one column": (b"class\nTurdus\n", "must have two columns"),
    "columns alike": (b"class,class\nTurdus,a\n", "two columns .class."),
    "a cell too many": (b"class,bin\nTurdus,a,b\n", "line 2: a class and its bin"),
    "no bin": (b"class,bin\nTurdus\n", "line 2: a class and its bin"),
    "an empty bin": (b"class,bin\nTurdus, \n", "line 2: a class and its bin"),
    "no class": (b"class,bin\n,a\n", "line 2: a class and its bin"),
    "two bins": (b"class,bin\nTurdus,a\nVulpes,b\nTurdus,b\n", "line 4: 'Turdus' is in bin 'b', and at .* line 2"),
    "two names, two bins": (b"class,bin\nraven,a\nCorvus corax,b\n", "line 3: 'Corvus corax' is in bin"),
    "a homonym": (b"class,bin\nOenanthe,a\n", "ambiguous"),
    "an open quote": (b'class,bin\n"Turdus,a\n', "well-formed|class and its bin"),
    "not UTF-8": (b"class,bin\ncaf\xe9,a\n", "not UTF-8"),
    "a picture": (picture(0), "not UTF-8"),
    "a long line": (b"class,bin\n" + b"x" * (1 << 20), "no table of taxa"),
}
SUBSETS = {
    "empty": (b"", "neither a rank"),
    "another column": (b"taxon\nAves\n", "neither a rank .* columns: \\['taxon'\\]"),
    "nothing known": (b"genus\nDraco\n", "names no taxon .* line 2: 'Draco'"),
    "rows blank": (b"genus\n \n", "names no taxon"),
    "a homonym": (b"genus\nTurdus\nOenanthe\n", "line 3: 'Oenanthe' is ambiguous"),
    "a homonym by name": (b"name\nOenanthe\n", "line 2: name 'Oenanthe' is ambiguous"),
    "a cell too many": (b"genus\nTurdus,x\n", "line 2: a row of another number"),
    "not UTF-8": (b"genus\ncaf\xe9\n", "not UTF-8"),
    "another tree": (b"kingdom,species\nPlantae,Turdus merula\n", "names no taxon"),
}
TAXONOMIES = {
    "empty": ("t.csv", b"", "no rank column"),
    "no rank": ("t.csv", b"a,b\n1,2\n", "no rank column"),
    "not UTF-8": ("t.csv", b"species\ncaf\xe9\n", "not UTF-8"),
    "a broken gz": ("t.csv.gz", gzip.compress(b"species\nTurdus\n" * 99)[:-9], "not a whole gzip"),
    "no gz": ("t.csv.gz", b"species\na\n", "not a whole gzip"),
    "another JSON": ("t.json", b"[]", "not a saved taxonomy"),
    "deep JSON": ("t.json", b"[" * 100_000, "not a saved taxonomy"),
    "a picture": ("t.csv", picture(0), "not UTF-8"),
    "no taxon": ("t.csv", b"kingdom\n", "holds no taxon"),
}
SYNONYMS = {
    "empty": (b"", "no column 'synonym'"),
    "a cell too few": (b"synonym,accepted\na\n", "line 2"),
    "not UTF-8": (b"synonym,accepted\ncaf\xe9,b\n", "not UTF-8"),
}
SIDECARS = {
    "no JSON": ("hyperbolic.json", b"{"),
    "no model": ("open_clip_config.json", b"{}"),
    "code": ("open_clip_config.json", b'{"model_cfg": {"text_cfg": {"hf_model_name": "x/y"}, "vision_cfg": {}}}'),
    "rubbish for weights": ("open_clip_model.safetensors", b"rubbish" * 100),
    "an empty file": ("open_clip_model.safetensors", b""),
    "weights cut off": ("hyperbolic.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
    "another taxonomy": ("taxonomy.json", b"{}"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_hostile_classes(run, place, tmp_path, name):
    data, message = CLASSES[name]
    (tmp_path / "c").write_bytes(data)
    refused(run("predict", place / "photo.jpg", "--classes", tmp_path / "c"), message)


@pytest.mark.parametrize("name", BINS)
def test_hostile_bins(run, place, tmp_path, name):
    data, message = BINS[name]
    (tmp_path / "b.csv").write_bytes(data)
    code, out, err = run("predict", place / "photo.jpg", "--bins", tmp_path / "b.csv")
    mistake = "\n".join(line for line in err.splitlines() if "names its columns" not in line)
    refused((code, out, mistake), message)


@pytest.mark.parametrize("name", SUBSETS)
def test_hostile_subsets(run, place, tmp_path, name):
    data, message = SUBSETS[name]
    (tmp_path / "s.csv").write_bytes(data)
    refused(run("predict", place / "photo.jpg", "--subset", tmp_path / "s.csv"), message)


@pytest.mark.parametrize("name", TAXONOMIES)
def test_hostile_taxonomies(run, place, tmp_path, name):
    file, data, message = TAXONOMIES[name]
    (tmp_path / file).write_bytes(data)
    refused(run("predict", place / "photo.jpg", "--taxonomy", tmp_path / file), message)
    refused(run("list-taxa", "--taxonomy", tmp_path / file), message)


@pytest.mark.parametrize("name", SYNONYMS)
def test_hostile_synonyms(run, place, tmp_path, name):
    data, message = SYNONYMS[name]
    (tmp_path / "s.csv").write_bytes(data)
    refused(run("predict", place / "photo.jpg", "--classes", "a,b", "--synonyms", tmp_path / "s.csv"), message)


@pytest.mark.parametrize("name", SIDECARS)
def test_hostile_models(capfd, place, tmp_path, name):
    file, data = SIDECARS[name]
    for path in (place / "model").iterdir():
        (tmp_path / path.name).write_bytes(data if path.name == file else path.read_bytes())
    code = main(["predict", "--model", str(tmp_path), str(place / "photo.jpg")])
    printed = capfd.readouterr()
    refused((code, printed.out, printed.err), str(tmp_path))


@pytest.fixture
def broken(place, tmp_path, monkeypatch):
    """A model whose named tensor is not a number, by name."""
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("bioclip_hc.predictor.open_system", open_system)

    def make(tensor):
        for path in (place / "model").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = load_file(tmp_path / "open_clip_model.safetensors")
        weights[tensor] = weights[tensor] * float("nan")
        save_file(weights, tmp_path / "open_clip_model.safetensors")
        return tmp_path

    return make


@pytest.mark.parametrize(
    "words", [["predict"], ["predict", "--decode", "path"], ["predict", "--classes", "a,b"], ["embed"]]
)
def test_an_image_that_a_model_makes_nothing_of_is_left_out(run, place, broken, words):
    code, out, err = run(*words, "--format", "json", place / "photo.jpg", model=broken("visual.conv1.weight"))
    assert (code, out) == (1, "")
    assert re.search(r"left out .*photo\.jpg: .* gives an embedding that is not finite", err)
    assert "1 of 1 images left out" in err


def test_texts_that_a_model_makes_nothing_of_are_a_mistake(run, place, broken):
    model = broken("token_embedding.weight")
    for words in (["predict"], ["predict", "--classes", "a,b"]):
        code, out, err = run(*words, place / "photo.jpg", model=model)
        assert (code, out) == (2, "")
        assert f"{model.name} gives text embeddings that are not finite" in err
    code, _, err = run("embed", "--taxa", model=model)
    assert (code, "not finite" in err) == (2, True)


def test_answers_before_an_image_that_is_not_finite_come_first(place, monkeypatch):
    predictor = Predictor(opened(place / "model"))
    encode = predictor._encode
    monkeypatch.setattr(predictor, "_encode", lambda x: encode(x) / (x.amax((1, 2, 3)) < 0)[:, None])
    dark, light = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), "white")
    images = [dark, dark, light, dark, light, dark]
    answered = []
    with pytest.raises(ValueError, match="not finite"):
        answered.extend(predictor.predict(images, rank="genus"))
    assert len(answered) == 2
    assert len(list(predictor.predict(images, rank="genus", on_error="skip"))) == 4
    assert len(list(predictor.embed(images, on_error="skip"))) == 4


@pytest.mark.parametrize("wrong", [{"mean": [0.5, 0.5]}, {"std": [0, 0, 0]}])
def test_a_model_that_can_prepare_no_photograph_is_blamed_for_it(capfd, place, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("bioclip_hc.predictor.open_system", open_system)
    for path in (place / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= wrong
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    code = main(["predict", "--model", str(tmp_path), str(place / "photo.jpg")])
    printed = capfd.readouterr()
    refused((code, printed.out, printed.err), f"{tmp_path.name}.*preprocess_cfg")


OPTIONS = {
    "--k 0": "k must be at least 1",
    "--k=-1 --classes a,b": "k must be at least 1",
    "--min-prob nan": "between 0 and 1",
    "--min-prob 1.1": "between 0 and 1",
    "--decode path --k 2": "one answer per rank",
    "--decode path --classes a,b": "follows the tree",
    "--classes a,b --rank genus": "exclude each other",
    "--classes a,b --bins BINS": "exclude each other",
    "--bins BINS --subset SUBSET": "exclude each other",
    "--batch-size 0": "batch_size must be at least 1",
    "--workers=-1": "workers at least 0",
    "--classes no/such.txt": "no/such.txt does not exist",
    "--classes ,": "names no class",
    "--classes cat/dog": "cat/dog does not exist; if this is a class itself, put a comma behind it",
    "--classes Oenanthe": "ambiguous.*--as-words",
    "--as-words": "there are none",
    "--synonyms SUBSET": "none is looked up",
    "--synonyms SUBSET --classes a --as-words": "none is looked up",
    "--revision abc": "revision 'abc' is of a hub repository",
    "--bins no.csv": "no.csv does not exist",
    "--subset no.csv": "no.csv does not exist",
    "--taxonomy no.csv": "no.csv does not exist",
    "--synonyms no.csv --classes a": "no.csv does not exist",
    "--format parquet": "needs --output",
    "--device nosuch": "nosuch",
    "--prompts nosuch": "nosuch",
    "--template none": "must hold one",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_cannot_be(run, place, tmp_path, words):
    (tmp_path / "b.csv").write_text("class,bin\nTurdus,a\n")
    (tmp_path / "s.csv").write_text("genus\nTurdus\n")
    known = {"BINS": tmp_path / "b.csv", "SUBSET": tmp_path / "s.csv"}
    refused(run("predict", place / "photo.jpg", *(known.get(w, w) for w in words.split())), OPTIONS[words])


def test_what_does_nothing_elsewhere_is_refused_too(run, place, tmp_path):
    (tmp_path / "s.csv").write_text("synonym,accepted\na,Turdus merula\n")
    synonyms = ("--synonyms", tmp_path / "s.csv")
    refused(run("list-taxa", *synonyms), "of the name of --below")
    refused(run("embed", "--taxa", *synonyms), "none is looked up")
    refused(run("embed", place / "photo.jpg", "--as-words"), "there are none")
    with pytest.raises(ValueError, match="as_words is of classes"):
        Predictor(place / "model").predict([], as_words=True)
    with pytest.raises(ValueError, match="revision 'main'"):
        Predictor(opened(place / "model"), revision="main")


def test_a_model_that_knows_no_taxon_takes_free_words_only(run, place):
    refused(run("predict", place / "photo.jpg", model="bare"), "name a table of taxa")
    refused(run("list-taxa", model="bare"), "name a table of taxa")
    code, out, _ = run(
        "predict", place / "photo.jpg", "--classes", "a cat, a dog", "--format", "json", model="bare"
    )
    assert code == 0
    assert sum(json.loads(line)["score"] for line in out.splitlines()) == pytest.approx(1, abs=1e-5)


def test_classes_and_taxa_obey_no_spreadsheet(run, place, tmp_path):
    (tmp_path / "t.csv").write_text('kingdom,genus,common_name\n=1+1,@x,"-cmd|x"\n\x1b[31m,+y,plain\n')
    _, out, _ = run("predict", place / "photo.jpg", "--taxonomy", tmp_path / "t.csv", "--k", "2", "--format", "csv")
    cells = [cell for row in csv.reader(io.StringIO(out)) for cell in row]
    assert {"'=1+1", "'@x", "'-cmd|x"} < set(cells)
    assert not any(cell.startswith(FORMULA) for cell in cells)
    _, out, _ = run("list-taxa", "--taxonomy", tmp_path / "t.csv", "--format", "table")
    assert all(line.isprintable() for line in out.split("\n"))


# -- where to write -----------------------------------------------------------------------------------------

FORMS = ["table", "csv", "json", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_full_device_is_one_line(run, place, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    code, _, err = run("predict", place / "photo.jpg", "--format", form, "--output", "/dev/full")
    assert code == 2
    assert err == "bioclip-hc: /dev/full cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", [["predict", "--format", form] for form in FORMS] + [["embed"]])
def test_a_disk_that_fills_up_leaves_the_earlier_output(run, place, tmp_path, command):
    if "parquet" in command:
        pytest.importorskip("pyarrow")
    output = tmp_path / ("out.npz" if command == ["embed"] else "out")
    output.write_text("earlier")
    words = [
        command[0],
        "--model",
        place / "model",
        "--no-cache",
        *command[1:],
        place / "photo.jpg",
        "--output",
        output,
    ]
    child = os.fork()
    if not child:  # what pytest captures is in files too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        os._exit(main(list(map(str, words))))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 2
    assert output.read_text() == "earlier"
    left = [path.name for path in tmp_path.iterdir() if path != output]
    assert all(name.endswith(".part") for name in left)
    assert not left or "parquet" not in command


def test_places_that_cannot_be_written(run, place, tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture(0))
    for output, message in {
        tmp_path: "is a folder",
        tmp_path / "no" / "out": "No such file",
        place / "photo.jpg" / "out": "Not a directory",
        tmp_path / "x.jpg": "named like a picture",
        tmp_path / ("x" * 300): "name too long",
    }.items():
        refused(run("predict", place / "photo.jpg", "--output", output), message)
    assert (tmp_path / "x.jpg").read_bytes() == picture(0)
    assert os.listdir(tmp_path) == ["x.jpg"]


def test_output_is_replaced_whole_also_behind_a_link(run, place, tmp_path):
    (tmp_path / "old").write_text("earlier")
    (tmp_path / "link").symlink_to("old")
    code, out, _ = run("predict", place / "photo.jpg", "--format", "csv", "--output", tmp_path / "link")
    assert (code, out) == (0, "")
    assert (tmp_path / "link").is_symlink()
    assert len((tmp_path / "old").read_text().splitlines()) == 8
    assert sorted(os.listdir(tmp_path)) == ["link", "old"]


def test_what_was_written_before_ctrl_c_is_kept_under_another_name(place, tmp_path, monkeypatch, capfd):
    answer = Predictor.predict

    def interrupted(*arguments, **options):
        yield next(iter(answer(*arguments, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", interrupted)
    words = [
        "predict",
        "--model",
        place / "model",
        place / "photo.jpg",
        "--format",
        "json",
        "--output",
        tmp_path / "o",
    ]
    options = parser().parse_args(list(map(str, words)))
    with pytest.raises(KeyboardInterrupt):
        options.command(options)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    assert len(left.read_text().splitlines()) == 7
    assert left.name in capfd.readouterr().err


def command(place, *words):
    return [sys.executable, "-m", "bioclip_hc.cli", words[0], "--model", str(place / "model"), *map(str, words[1:])]


def test_a_reader_that_leaves_and_a_full_standard_output(place, tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i))
    env = environment()
    read, write = os.pipe()
    os.close(read)
    left = subprocess.Popen(command(place, "predict", tmp_path), stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    with open("/dev/full", "wb") as full:
        filled = subprocess.Popen(command(place, "predict", tmp_path), stdout=full, stderr=subprocess.PIPE, env=env)
    assert left.communicate(timeout=300)[1] == b""
    assert left.returncode == 0
    err = filled.communicate(timeout=300)[1]
    assert err == b"bioclip-hc: standard output cannot be written: No space left on device\n"
    assert filled.returncode == 2


def test_answers_come_while_the_list_goes_on_and_ctrl_c_ends(place):
    env = environment(LC_ALL="C", PYTHONUTF8="0")
    process = subprocess.Popen(
        command(place, "predict", "-", "--format", "json", "--rank", "genus"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
    )  # fmt: skip
    photo = os.fsencode(place / "photo.jpg")
    process.stdin.write(photo + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["file_name"] == str(place / "photo.jpg")  # the list is still open
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, b"")
    assert err == b"bioclip-hc: interrupted\n"


# -- the same from Python -----------------------------------------------------------------------------------


def test_predictor_on_every_kind_of_picture(place, tmp_path):
    for name, (data, _) in list(pictures().items())[:60]:
        (tmp_path / name).write_bytes(data)
    names = sorted(tmp_path.iterdir())
    predictor = Predictor(place / "model")
    told = {}
    found = [a.file_name for a in predictor.predict(names, rank="order", on_error=told.__setitem__)]
    assert sorted([*found, *told]) == list(map(str, names))
    assert all(isinstance(error, ValueError) for error in told.values())
    assert found == [a.file_name for a in predictor.predict(names, rank="order", on_error="skip", workers=0)]
    first = str(names.index(next(name for name in names if str(name) in told)))
    answered = []
    with pytest.raises(DecodeError, match=re.escape(next(iter(told)))):
        answered.extend(predictor.predict(names, rank="order"))
    assert len(answered) == int(first)  # those before it have been answered
    with pytest.raises(ValueError, match="on_error must be"):
        predictor.predict([], on_error="ignore")
