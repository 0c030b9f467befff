"""bioclip-hc evaluate and few-shot on small benchmarks: processes, kills, what is kept, and what is written."""

import csv
import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_run import ARCHITECTURES, LINEAGES, environment, picture, write_pictures

from bioclip_hc.cli import main
from bioclip_hc.data.prompts import read_prompts
from bioclip_hc.evaluation import Report, question, systems
from bioclip_hc.evaluation.comparison import distinct_names, published_beside
from bioclip_hc.evaluation.counts import COUNTS, save_counts
from bioclip_hc.evaluation.images import Embedded, Unread
from bioclip_hc.evaluation.published import recipes
from bioclip_hc.evaluation.strata import training_counts
from bioclip_hc.evaluation.systems import System, open_system
from bioclip_hc.model import HierarchicalCLIP, create_model
from bioclip_hc.taxonomy import RANKS, Taxonomy, rank_index

COUNT = 26


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models, a manifest of pictures, and shards."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        create_model(folder / "tiny.json").save_pretrained(folder / name)
        Taxonomy.from_lineages(LINEAGES).save(folder / name / "taxonomy.json")
    write_manifest(folder / "set")
    write_pictures(folder / "shards", 24)
    return folder


def write_manifest(folder, broken=()):
    folder.mkdir()
    with (folder / "set.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", *RANKS])
        for i in range(COUNT):
            data = b"<html>" if i in broken else picture(i % (COUNT - 2))  # two are others under another name
            (folder / f"{i}.jpg").write_bytes(data)
            rows.writerow([f"{i}.jpg", *LINEAGES[i % (COUNT - 2) % 6]])


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_page(monkeypatch):
    """A report without its page, which takes seconds to draw."""
    monkeypatch.setattr(Report, "to_html", lambda self, path: path.write_text(""))


def words(place, *more):
    own = ["evaluate", "--model", place / "model", "--benchmark", "manifest", "--data", place / "set" / "set.csv"]
    return [str(word) for word in (*own, *more)]


def run(capsys, words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def forward_passes(monkeypatch):
    """Counts the images that any model sees from now on."""
    seen = []
    encode = HierarchicalCLIP.encode_image
    monkeypatch.setattr(HierarchicalCLIP, "encode_image", lambda m, images: seen.append(1) or encode(m, images))
    return seen


def rows_of(folder):
    return json.loads((folder / "report.json").read_text())["rows"]


# -- the cache and the processes


def test_a_second_evaluation_costs_no_forward_pass(capsys, place, tmp_path, monkeypatch, no_page):
    seen = forward_passes(monkeypatch)
    code, first, _ = run(capsys, words(place, "--output", tmp_path / "a"))
    assert code == 0
    assert len(seen) == 1
    _, second, _ = run(capsys, words(place, "--output", tmp_path / "b"))
    assert len(seen) == 1
    assert first.replace(str(tmp_path / "a"), "") == second.replace(str(tmp_path / "b"), "")
    for name in ("predictions.csv", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_any_number_of_processes_gives_the_same_bytes(capsys, place, tmp_path, monkeypatch, no_page):
    """One; two that a launcher starts; three that the command starts."""

    def asked(count, *more):
        return words(place, "--cache", tmp_path / f"of {count}", "--output", tmp_path / str(count), *more)

    assert run(capsys, asked(1))[0] == 0
    code, out, err = run(capsys, asked(3, "--processes", "3"))
    assert code == 0, err
    assert out.count("coarse-to-fine") == 1  # one of them speaks
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    said = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    other = subprocess.Popen(
        [sys.executable, "-m", "bioclip_hc.cli", *asked(2)],
        env=environment(**said, RANK="1", LOCAL_RANK="1"),
        stdout=subprocess.PIPE,
    )
    for name, value in {**said, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, asked(2))
    assert code == 0, err
    assert other.communicate(timeout=240) == (b"", None)
    assert other.returncode == 0
    assert [len(list((tmp_path / f"of {count}").rglob("*.part"))) for count in (1, 2, 3)] == [1, 2, 3]
    for name in ("predictions.csv", "report.json"):
        assert len({(tmp_path / str(count) / name).read_bytes() for count in (1, 2, 3)}) == 1


HANGS = """
import os, time
if os.environ.get("RANK") == "1":
    from bioclip_hc.evaluation import images
    read = images._Pictures.__getitem__
    images.embed_photographs.__kwdefaults__["batch_size"] = 1

    def slowly(self, place):
        if place == 2:
            with open({reached!r} + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename({reached!r} + ".new", {reached!r})
            time.sleep(600)
        return read(self, place)

    images._Pictures.__getitem__ = slowly
"""


@pytest.fixture
def second(monkeypatch, tmp_path):
    """The second of all processes hangs at its third picture; call for its id, which waits until it does."""
    reached = tmp_path / "reached"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGS.format(reached=str(reached)))
    path = os.pathsep.join([str(tmp_path / "site"), environment()["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)

    def pid():
        end = time.monotonic() + 200
        while not reached.is_file():
            assert time.monotonic() < end
            time.sleep(0.05)
        return int(reached.read_text())

    return pid


def test_a_process_that_is_killed_ends_all_and_what_was_done_is_kept(capsys, place, tmp_path, monkeypatch, second):
    killer = threading.Thread(target=lambda: os.kill(second(), signal.SIGKILL))
    killer.start()
    code, out, err = run(capsys, words(place, "--processes", "2"))
    killer.join()
    assert code == 2
    assert out == ""
    assert err.startswith(
        "bioclip-hc: process 1 of 2 was ended by signal 9; all have ended. Embeddings done so far"
    )
    assert len(err.splitlines()) == 1
    before = {path: path.stat().st_size for path in (tmp_path / "cache").rglob("*.part")}
    assert len(before) == 2
    seen = forward_passes(monkeypatch)
    code, table, _ = run(capsys, words(place))
    assert code == 0
    assert len(seen) == 1
    sizes = {path: path.stat().st_size for path in (tmp_path / "cache").rglob("*.part")}
    record = 32 + 4 * 16 + 4
    assert sum(size // record for size in sizes.values()) == COUNT - 2  # none was computed twice
    assert {path: sizes[path] for path in before} == before
    shutil.rmtree(tmp_path / "cache")
    assert run(capsys, words(place))[1] == table


def test_those_it_started_end_with_it(place, second):
    asked = words(place, "--processes", "2")
    process = multiprocessing.get_context("fork").Process(target=main, args=(asked,))
    process.start()
    other = second()
    process.kill()
    process.join(60)
    end = time.monotonic() + 60
    while alive(other):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- what is asked, and what is said of it


def test_it_writes_page_table_data_and_predictions(capsys, place, tmp_path):
    code, out, _ = run(capsys, words(place, "--model", place / "other", "--output", tmp_path / "out"))
    assert code == 0
    assert "candidates: the benchmark's own taxa" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("predictions.csv", "report.html", "report.json", "report.md")
    ]
    rows = rows_of(tmp_path / "out")
    assert {(row["name"], row["protocol"]) for row in rows} == {
        ("chance", ""),
        *((name, p) for name in ("model", "other") for p in ("coarse-to-fine", "top-down", "full-path")),
    }
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 2 * 3 * COUNT
    down = [p for p in predictions if (p["system"], p["protocol"]) == ("other", "top-down")]
    (score,) = [row["score"] for row in rows if (row["name"], row["protocol"]) == ("other", "top-down")]
    for r, rank in enumerate(RANKS):
        known = [p for p in down if p[f"true_{rank}"]]
        right = [p[rank] == p[f"true_{rank}"] and same_above(p, r) for p in known]
        assert np.mean(right) == pytest.approx(score["accuracy"][r])
    assert down[0]["file_name"].endswith("0.jpg")
    assert all(0 <= float(p["probability_species"]) <= 1 for p in predictions)


def same_above(prediction, r):
    return all(prediction[rank] == prediction[f"true_{rank}"] for rank in RANKS[:r] if prediction[f"true_{rank}"])


def test_unreadable_images_are_told_counted_and_left_out(capsys, place, tmp_path):
    write_manifest(tmp_path / "set", broken=(3, 7))
    asked = words(tmp_path)
    asked[2] = place / "model"
    code, _, err = run(capsys, asked)
    assert code == 1
    assert f"model: left out 2 of {COUNT} images" in err
    assert "3.jpg" in err


def test_a_report_says_what_was_left_out_and_what_was_run_and_not_where_it_lay(capsys, place, tmp_path):
    write_manifest(tmp_path / "set", broken=(3, 7))
    with (tmp_path / "set" / "set.csv").open("a") as file:
        file.write(",".join(["gone.jpg", *LINEAGES[0]]) + "\n")
    asked = words(tmp_path, "--output", tmp_path / "out", "--template", "a {}", "--template", "the {}")
    asked[2] = str(place / "model")
    run(capsys, asked)
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    notes = content["notes"]
    assert notes[0].startswith(f"set.csv: {COUNT - 2} photographs; candidates: the benchmark's own taxa, ")
    assert "left out 1: no file '...'; the first: set.csv, line 28: no file 'gone.jpg'" in notes
    assert any(note.startswith("left out 2: ") and "; the first: 3.jpg" in note for note in notes)
    (system,) = content["systems"]
    assert system["prompts"]["templates"] == ["a {}", "the {}"]
    assert (system["source"], system["geometry"]) == ("model", "lorentz")
    answers = next(row for row in content["rows"] if row["protocol"])
    assert system["image_fingerprint"][:12] in answers["extra"]["fingerprints"]
    for name in ("report.json", "report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "left out 2:" in text.replace("\\", "")
        assert str(tmp_path) not in text
        assert str(place) not in text


def test_stopping_by_probability_and_by_risk(capsys, place, tmp_path, no_page):
    code, out, _ = run(capsys, words(place, "--abstain", "0.5", "--max-risk", "0.4", "--output", tmp_path / "out"))
    assert code == 0
    rows = {(row["split"], row["protocol"]): row for row in rows_of(tmp_path / "out")}
    below = rows["set.csv", "stopping below 50%"]["score"]
    whole = rows["set.csv", "full-path"]["score"]
    assert all(b <= w for b, w in zip(below["accuracy"], whole["accuracy"], strict=True))
    half = "set.csv, test half"
    scored = [hashlib.sha256(picture(i % (COUNT - 2))).digest()[0] >= 128 for i in range(COUNT)]
    assert 0 < sum(scored) < COUNT
    assert rows[half, "full-path"]["score"]["images"] == sum(scored)
    assert (
        rows[half, "full-path"]["score"]["images"]
        == (rows[half, "stopping so that at most 40% are wrong"]["score"]["images"])
    )
    assert "named (wrong of these" in out
    by_chance = rows[half, ""]["score"]
    assert by_chance["images"] == sum(scored)
    assert by_chance["accuracy"][0] == rows["set.csv", ""]["score"]["accuracy"][0] == 1 / 2


@pytest.mark.parametrize("command", ["evaluate", "few-shot"])
@pytest.mark.parametrize("side", ["visual", "textual"])
def test_a_model_that_makes_no_finite_numbers_is_refused(capsys, place, monkeypatch, command, side):
    method = {"visual": "encode_image", "textual": "encode_text"}[side]
    encode = getattr(HierarchicalCLIP, method)
    monkeypatch.setattr(HierarchicalCLIP, method, lambda *a, **k: encode(*a, **k) * float("nan"))
    code, out, err = run(capsys, [command, *words(place)[1:]])
    if (command, side) == ("few-shot", "textual"):  # no text is asked
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert "finite" in err


def test_thresholds_need_photographs_in_both_halves(capsys, place, tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("".join((place / "set" / "set.csv").read_text().splitlines(keepends=True)[:2]))
    asked = [
        table if word == str(place / "set" / "set.csv") else word for word in words(place, "--max-risk", "0.4")
    ]
    code, out, err = run(capsys, [*asked, "--images", place / "set"])
    assert (code, out) == (2, "")
    assert "--max-risk needs photographs to set thresholds on and others to score; of 1 on one.csv" in err


def test_shards_are_asked_among_the_models_own_taxa(capsys, place):
    code, out, _ = run(capsys, ["evaluate", "--model", place / "model", "--data", place / "shards"])
    assert code == 0
    assert "candidates: the taxa that the model was trained on" in out


def test_head_tail_and_unseen_by_what_the_model_says(capsys, place, tmp_path, no_page):
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    own = Taxonomy.load(model / "taxonomy.json")
    seen = own.encode_many([LINEAGES[0]] * 30 + [LINEAGES[2]] * 3)
    save_counts(training_counts(seen, own), own, model)
    asked = words(place, "--output", tmp_path / "out")
    asked[2] = str(model)
    assert run(capsys, asked)[0] == 0
    images = {
        name: s["images"]
        for name, s in next(row for row in rows_of(tmp_path / "out") if row["protocol"])["score"]["strata"].items()
    }
    of = [i % (COUNT - 2) % 6 for i in range(COUNT)]
    assert images == {"head": of.count(0), "tail": of.count(2), "unseen": COUNT - of.count(0) - of.count(2)}
    table = tmp_path / "counts.csv"
    table.write_text(",".join([*RANKS, "images"]) + "\n" + ",".join([*LINEAGES[1], "25"]) + "\n")
    assert run(capsys, [*asked, "--training-counts", table])[0] == 0
    head = next(row for row in rows_of(tmp_path / "out") if row["protocol"])["score"]["strata"]["head"]
    assert head["images"] == of.count(1)
    (model / COUNTS).write_text("{")
    code, _, err = run(capsys, asked)
    assert code == 2
    assert "has no training counts that can be used" in err


def test_at_ranks_that_a_benchmark_leaves_out_nothing_is_named(capsys, place, monkeypatch, tmp_path, no_page):
    """Not even on the way down: a wrong kingdom would lose all that lies below the right one."""
    open_whole = question.open_benchmark
    from_order = tuple(range(rank_index("order"), len(RANKS)))
    monkeypatch.setattr(question, "open_benchmark", lambda *a, **k: replace(open_whole(*a, **k), ranks=from_order))
    assert run(capsys, words(place, "--output", tmp_path / "out"))[0] == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["protocol"] for row in rows} == {"coarse-to-fine", "top-down", "full-path"}
    for above, below in (("kingdom", "order"), ("phylum", "family"), ("class", "species")):
        assert not any(row[above] or row[f"true_{above}"] for row in rows)
        assert all(row[below] for row in rows)
    chance = next(row for row in rows_of(tmp_path / "out") if not row["protocol"])["score"]
    assert chance["accuracy"][: len(RANKS) - len(from_order)] == [None] * 3


# -- published figures


def test_published_figures_stand_only_beside_answers_to_the_same_question(place):
    system = replace(open_system(place / "model"), recipe=recipes()["bioclip"], prompts=read_prompts("bioclip"))
    asked = question.asked("manifest", place / "set" / "set.csv", None, [system])
    same = replace(asked, kind="inat21", benchmark=replace(asked.benchmark, whole=True))
    embedded = Embedded(np.arange(COUNT), torch.zeros(COUNT, 16), [], 0)
    figures, differs = published_beside(system, same, embedded)
    assert (figures["top-down"]["nlca"], differs) == (0.32, "")
    others = Taxonomy.from_lineages(LINEAGES)
    for changed, said in (
        ((system, replace(same, benchmark=asked.benchmark), embedded), "not all photographs"),
        ((system, same, replace(embedded, unread=[Unread(0, "gone")])), "not all photographs"),
        (
            (system, replace(same, taxonomy=others, candidates="the taxa of t.csv"), embedded),
            "are the taxa of t.csv",
        ),
        ((replace(system, prompts=read_prompts("names")), same, embedded), "other words"),
        ((replace(system, revision="0" * 40), same, embedded), "another commit"),
    ):
        figures, differs = published_beside(*changed)
        assert figures == {}
        assert said in differs
    assert published_beside(replace(system, recipe=None), same, embedded) == ({}, "")


def test_what_published_figures_are_missing_for_is_said(capsys, place, monkeypatch, tmp_path, no_page):
    open_as_it_is = systems.open_system
    monkeypatch.setattr(
        systems, "open_system", lambda *a, **k: replace(open_as_it_is(*a, **k), recipe=recipes()["bioclip"])
    )
    asked = question.asked
    monkeypatch.setattr(question, "asked", lambda *a, **k: replace(asked(*a, **k), kind="inat21"))
    _, _, err = run(capsys, words(place, "--output", tmp_path / "out"))
    assert "published figures of model are not set beside its own: these are not all photographs" in err
    systems_rows = [row for row in rows_of(tmp_path / "out") if row["protocol"]]
    assert all("not all photographs" in row["extra"]["published figures"] for row in systems_rows)
    assert not any(row["published"] for row in systems_rows)
    (note,) = json.loads((tmp_path / "out" / "report.json").read_text())["notes"][1:]
    assert note.startswith("model: published figures are not set beside these: these are not all photographs")


@pytest.mark.parametrize(
    ("systems", "names"),
    [
        ([("m", "/x/a/m", ""), ("m", "/x/b/m", ""), ("m", "/y/b/m", "")], ["m", "m (b/m)", "m (2)"]),
        ([("m", "/x/a/m", ""), ("m", "/x/a/m", ""), ("m", "/x/a/m", "")], ["m", "m (2)", "m (3)"]),
        ([("BioCLIP", "owner/a", "c0"), ("BioCLIP", "owner/b", "c1")], ["BioCLIP", "BioCLIP (owner/b)"]),
    ],
)
def test_systems_of_one_name_are_told_apart_without_absolute_paths(systems, names):
    given = [System(name, None, None, None, None, None, source, commit) for name, source, commit in systems]
    assert [system.name for system in distinct_names(given)] == names


# -- few-shot


def test_few_shot(capsys, place, tmp_path):
    asked = ["few-shot", *words(place)[1:], "--shots", "1", "2", "--seeds", "3", "--output", tmp_path / "out"]
    code, out, _ = run(capsys, asked)
    assert code == 0
    assert "model, 1 shot" in out
    content = json.loads((tmp_path / "out" / "few-shot.json").read_text())
    assert [row["shots"] for row in content["rows"]] == [1, 2]
    row = content["rows"][0]
    assert len(row["accuracy"]) == 3
    assert row["classes"][0] == 2
    assert row["mean"][0] == pytest.approx(np.mean([draw[0] for draw in row["accuracy"]]))
    assert row["std"][0] == pytest.approx(np.std([draw[0] for draw in row["accuracy"]], ddof=1))
    assert f"{100 * row['mean'][0]:.1f} ±{100 * row['std'][0]:.1f}" in out
    assert row["chance"][0] == 0.5
    assert [line.split()[5:7] for line in out.splitlines() if "of how many taxa" in line] == [["2", "(50.0)"]] * 2
    code, out, _ = run(capsys, [*asked, "--rank", "order", "--method", "knn"])
    assert code == 0
    assert "order" in out
    assert "kingdom" not in out


def test_few_shot_copies_do_not_ask_for_themselves(capsys, place, tmp_path):
    """Two different pictures of each of three lineages, and two copies of the first ones."""
    table = tmp_path / "set.csv"
    rows = [[f"{n}-{i}.jpg", *LINEAGES[n]] for n in range(3) for i in range(4)]
    for n in range(3):
        for i, which in enumerate((n, n + 6, n, n)):
            (tmp_path / f"{n}-{i}.jpg").write_bytes(picture(which))
    table.write_text("\n".join(",".join(row) for row in (["filepath", *RANKS], *rows)))
    asked = ["few-shot", "--model", place / "model", "--benchmark", "manifest", "--data", table, "--seeds", "2"]
    code, _, err = run(capsys, [*asked, "--shots", "1", "--rank", "species", "--output", tmp_path / "out"])
    assert code == 0
    assert "set aside 6 images that are copies of others" in err
    (row,) = json.loads((tmp_path / "out" / "few-shot.json").read_text())["rows"]
    assert (row["classes"][6], row["queries"][6]) == (3, 3)
    code, out, err = run(capsys, [*asked, "--shots", "2", "--rank", "species"])
    assert (code, out) == (2, "")
    assert "nothing to tell apart: set.csv has no two taxa of species with more than 2 images each" in err


# -- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--abstain", "1.5"], "--abstain must lie between 0 and 1, got 1.5"),
        (["--max-risk", "0"], "--max-risk must lie between 0 and 1"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--training-counts", "nowhere.csv"], "nowhere.csv"),
        (["--taxonomy", "nowhere.csv"], "nowhere.csv"),
        (["--output", "FILE"], "tiny.json is a file; name a folder"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--predictions", "parquet", "--output", "OUT"], "--predictions parquet needs pyarrow"),
        (["--split", "val"], "takes no option 'split'"),
        (["--model", "nowhere"], "nowhere"),
        (["--clade", "Dragons"], "Dragons"),
        (["--prompts", "nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line_and_code_2(capsys, place, tmp_path, monkeypatch, more, message):
    known = {"FILE": place / "tiny.json", "OUT": tmp_path / "out"}
    is_refused(capsys, monkeypatch, words(place, *(known.get(word, word) for word in more)), message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "1", "0"], "shots must be at least 1, got 0"),
        (["--seeds", "0"], "seeds must name one draw or more"),
        (["--method", "knn", "--neighbours", "0"], "neighbours must be at least 1, got 0"),
        (["--method", "tangent", "--model", "EUCLIDEAN"], "method 'tangent' needs geometry 'lorentz'"),
    ],
)
def test_mistakes_of_few_shot(capsys, place, tmp_path, monkeypatch, more, message):
    create_model(place / "tiny.json", geometry="euclidean").save_pretrained(tmp_path / "euclidean")
    more = [str(tmp_path / "euclidean") if word == "EUCLIDEAN" else word for word in more]
    is_refused(capsys, monkeypatch, ["few-shot", *words(place)[1:], *more], message)


def test_a_table_without_its_kind_is_not_taken_for_shards(capsys, place, monkeypatch):
    asked = words(place)
    del asked[3:5]
    is_refused(capsys, monkeypatch, asked, "set.csv is a table, and no shards; add --benchmark manifest")


def is_refused(capsys, monkeypatch, asked, message):
    """Before anything is embedded, on one line."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    seen = forward_passes(monkeypatch)
    code, out, err = run(capsys, asked)
    assert (code, out, seen) == (2, "", [])
    assert message in err
    assert err.startswith("bioclip-hc: ")
    assert len(err.strip().splitlines()) == 1
