"""bioclip-hc from the command line, on a small model and small shards; test_shards_cli.py has `shards`."""

import csv
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from shards_by_hand import write_tar
from small_run import ARCHITECTURES, LINEAGES, environment, picture, write_pictures

from bioclip_hc.cli import main
from bioclip_hc.data import decode
from bioclip_hc.doctor import SELF_CHECK_TOLERANCE, _verdict
from bioclip_hc.kernels import backends, panel
from bioclip_hc.kernels.backends import BACKENDS, choose_backend, why_not
from bioclip_hc.model import create_model
from bioclip_hc.taxonomy import RANKS, Taxonomy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model/, shards/ and photos/."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    create_model(folder / "tiny.json").save_pretrained(folder / "model")
    Taxonomy.from_lineages(LINEAGES).save(folder / "model" / "taxonomy.json")
    write_pictures(folder / "shards", 24)
    (folder / "photos").mkdir()
    for i in range(12):
        (folder / "photos" / f"bird {i}.jpg").write_bytes(picture(i))
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_an_error_moves_no_cursor(capsys, tmp_path):
    assert main(["shards", "inspect", str(tmp_path / "no\x1b[2Jwhere.tar")]) == 2
    said = capsys.readouterr().err
    assert "where.tar" in said
    assert "\x1b" not in said


def test_help_needs_no_torch():
    code = (
        "import sys; from bioclip_hc.cli import parser; parser().format_help(); "
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules or 'deepspeed' in sys.modules)"
    )
    assert subprocess.call([sys.executable, "-c", code], env=environment()) == 0


def test_predict_in_three_formats(capsys, place):
    words = ("predict", "--model", place / "model", place / "photos", "--rank", "order", "--k", "2")
    code, table, _ = run(capsys, *words)
    assert code == 0
    assert table.count("bird ") == 12
    code, text, _ = run(capsys, *words, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 24
    assert list(rows[0]) == ["file_name", *RANKS, "common_name", "rank", "score"]
    code, lines, _ = run(capsys, *words, "--format", "json")
    assert [json.loads(line)["file_name"] for line in lines.splitlines()] == [row["file_name"] for row in rows]


def test_an_unreadable_picture_is_left_out_and_told(capsys, place, tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    picture_path = place / "photos" / "bird 1.jpg"
    code, out, err = run(capsys, "predict", "--model", place / "model", tmp_path / "page.jpg", picture_path)
    assert code == 1
    assert "page.jpg" in err
    assert str(picture_path) in out
    assert "page.jpg" not in out


def test_embed(capsys, place, tmp_path):
    code, _, _ = run(capsys, "embed", "--model", place / "model", place / "photos", "--output", tmp_path / "e.npz")
    assert code == 0
    with np.load(tmp_path / "e.npz") as content:
        assert content["embedding"].shape == (12, 16)
        assert len(content["file_name"]) == 12


def test_evaluate_writes_a_report(capsys, place, tmp_path):
    words = ("evaluate", "--model", place / "model", "--data", place / "shards", "--output", tmp_path / "report")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "coarse-to-fine" in out
    assert "top-down" in out
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    fine, down, path = (row["score"] for row in rows if row["protocol"])
    assert all(top >= one for top, one in zip(fine["top_k"], fine["accuracy"], strict=True))
    assert (fine["k"], down["k"], down["top_k"]) == (5, 1, None)
    assert -1 <= fine["root_order"] == down["root_order"] <= 1
    for score in (fine, down, path):
        low, high = score["intervals"]["measures"]["average"]
        assert low <= score["average"] <= high
        assert [sum(bins) for bins in score["calibration"]["count"]] == score["known"]
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_labels_that_the_taxonomy_lacks_are_told(capsys, place, tmp_path):
    (tmp_path / "plants.csv").write_text("\ufeff" + ",".join(RANKS) + "\r\nPlantae,,,,,,\r\n")
    words = (
        "evaluate",
        "--model",
        place / "model",
        "--data",
        place / "shards",
        "--taxonomy",
        tmp_path / "plants.csv",
    )
    code, _, err = run(capsys, *words)
    assert code == 0
    assert "24 of 24 samples name taxa that the taxonomy lacks" in err
    assert "Animalia > Chordata" in err


def test_evaluate_looks_names_up_in_the_taxonomy_and_the_synonyms(capsys, place, tmp_path):
    names = [path.read_bytes() for path in sorted((place / "photos").iterdir())[:4]]
    taxonomy = Taxonomy.load(place / "model" / "taxonomy.json")
    genus, species = taxonomy.path(taxonomy.size - 1)[-2:]
    texts = (f"{genus} {species}", "an old name", "a cat", " ".join(taxonomy.path(0)))
    members = [
        (f"{i}.{extension}", data)
        for i, (image, text) in enumerate(zip(names, texts, strict=True))
        for extension, data in (("jpg", image), ("txt", text.encode()))
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    (tmp_path / "synonyms.csv").write_text(f"synonym,accepted\nan old name,{genus}\n")
    words = ("evaluate", "--model", place / "model", "--data", shard, "--synonyms", tmp_path / "synonyms.csv")
    code, _, err = run(capsys, *words)
    assert code == 1  # one is left out
    assert "taxa of 3 samples: 1 by path, 1 by name, 1 by synonym" in err
    assert "1 samples left out, not in the taxonomy: name 'a cat' is not in the taxonomy" in err


def test_doctor_checks_every_live_backend(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    devices = 1 + torch.cuda.device_count()
    assert out.count(f"; chosen: {choose_backend(None, torch.device('cpu'), torch.float32)}\n") >= 1
    for backend in BACKENDS:
        lines = [line for line in out.splitlines() if line.startswith(f"  {backend} ") and "live" in line]
        assert len(lines) == devices
        for line in lines:
            if "not live" in line:
                assert backend in ("cpu", "triton")
                assert line.endswith(why_not(backend, torch.device("cpu")))
            else:
                assert 0 < float(line.split()[-1]) < SELF_CHECK_TOLERANCE


@pytest.mark.parametrize("name", ["simplejpeg", "Pillow"])
def test_doctor_names_what_decodes_photographs(capsys, monkeypatch, name):
    if name == "Pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
    else:
        pytest.importorskip(name)
    monkeypatch.setattr(backends, "BACKENDS", ())  # not tried here
    _, out, _ = run(capsys, "doctor")
    (said,) = [line for line in out.splitlines() if line.startswith("photographs: ")]
    assert said.startswith(f"photographs: decoded by {name} {importlib.metadata.version(name)}")
    assert ("not installed" in said) == (name == "Pillow")


def no_compiler(side):
    raise RuntimeError("no compiler")


def stretched(side, factor):
    return side if side.r is None else dataclasses.replace(side, r=side.r * factor)


FAULTS = {
    "FAILS: RuntimeError: no compiler": no_compiler,
    "WRONG: largest difference": lambda side: stretched(side, 1.001),
    "WRONG: largest difference to the reference nan": lambda side: stretched(side, math.nan),
}


@pytest.mark.parametrize("verdict", FAULTS)
def test_doctor_finds_a_fault_of_the_tiled_backend(monkeypatch, verdict):
    cpu, prepare = torch.device("cpu"), panel.prepare
    assert _verdict("tiled", cpu)[1]
    monkeypatch.setattr(panel, "prepare", lambda *arguments: FAULTS[verdict](prepare(*arguments)))
    told, agrees = _verdict("tiled", cpu)
    assert verdict in told
    assert not agrees


def test_doctor_ends_with_2_when_a_backend_disagrees(capsys, monkeypatch):
    verdicts = {"tiled": ("live, but WRONG", False)}
    monkeypatch.setattr("bioclip_hc.doctor._verdict", lambda backend, device: verdicts.get(backend, ("live", True)))
    code, out, _ = run(capsys, "doctor")
    assert code == 2
    assert "  tiled      live, but WRONG" in out


def test_doctor_says_how_to_check_triton_without_a_gpu():
    command = [sys.executable, "-m", "bioclip_hc.cli", "doctor"]
    done = subprocess.run(
        command, env=environment(CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="0"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  triton ") and "live" in line]
    assert "not live" in line
    has_triton = importlib.util.find_spec("triton") is not None
    assert ("TRITON_INTERPRET=1 bioclip-hc doctor" in done.stdout) == has_triton


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--model", "nowhere", "x.jpg"], "nowhere"),
        (["evaluate", "--model", "MODEL", "--data", "nowhere"], "nowhere"),
        (["predict", "--model", "MODEL", "PHOTOS", "--k", "0"], "k must be at least 1"),
        (["predict", "--model", "MODEL", "EMPTY"], "no pictures"),
    ],
)
def test_mistakes_are_one_line_and_code_2(capsys, place, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    known = {
        "MODEL": place / "model",
        "PHOTOS": place / "photos",
        "EMPTY": tmp_path / "empty",
    }
    code, _, err = run(capsys, *(known.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert err.startswith("bioclip-hc: ")
    assert len(err.strip().splitlines()) == 1
