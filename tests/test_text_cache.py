"""Text embeddings on disk: what they are keyed by, and every way in which a cache can fail."""

import dataclasses
import json
import multiprocessing
import os
import resource

import pytest
import torch
from small_run import ARCHITECTURES, LINEAGES

from bioclip_hc.data.prompts import Prompts
from bioclip_hc.evaluation import text_cache
from bioclip_hc.evaluation.systems import System
from bioclip_hc.evaluation.text_cache import taxa_texts, text_cache_folder, texts_key
from bioclip_hc.model import create_model
from bioclip_hc.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_lineages(LINEAGES)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    create_model(folder / "tiny.json").save_pretrained(folder / "model")
    return System.load(folder / "model")


@pytest.fixture
def computed(monkeypatch):
    """How often texts have been embedded."""
    count, embed = [], System.embed_taxa
    monkeypatch.setattr(System, "embed_taxa", lambda self, taxonomy: count.append(1) or embed(self, taxonomy))
    return count


@pytest.fixture
def told():
    return []


def test_second_time_computes_nothing_and_gives_the_same_bits(system, computed, told, tmp_path):
    first, second = (taxa_texts(system, TAXONOMY, cache=tmp_path / "new", tell=told.append) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, system.embed_taxa(TAXONOMY))
    assert len(computed) == 2  # one of them this test's own
    assert not told
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]


def test_without_a_cache_nothing_is_written(system, computed, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        taxa_texts(system, TAXONOMY, cache=False)
    assert len(computed) == 2
    assert not list(tmp_path.iterdir())
    taxa_texts(system, TAXONOMY)
    assert len(list(text_cache_folder().iterdir())) == 1
    assert text_cache_folder() == tmp_path / "bioclip_hc" / "texts"


def text_parameters(names):
    """One of each kind."""
    kinds = ("token_embedding", "positional_embedding", "attn.in_proj_weight", "ln_final.bias", "text_projection")
    return [next(n for n in names if kind in n and not n.startswith("clip.visual.")) for kind in kinds]


def test_key_covers_all_that_the_numbers_depend_on(system, told):
    key = texts_key(system, TAXONOMY)
    assert key == texts_key(dataclasses.replace(system, name="another name"), TAXONOMY)
    others = {
        "words": texts_key(dataclasses.replace(system, prompts=Prompts(("a photo of {}.",))), TAXONOMY),
        "taxa": texts_key(system, Taxonomy.from_lineages(LINEAGES[:-1])),
        "letters": texts_key(
            system, Taxonomy.from_lineages([(*names[:-1], names[-1].replace("a", "a\u0301")) for names in LINEAGES])
        ),
        "common names": texts_key(system, Taxonomy.from_lineages(LINEAGES, [str(i) for i in range(len(LINEAGES))])),
        "tokenizer": texts_key(
            dataclasses.replace(system, tokenizer=lambda texts: system.tokenizer([text[::-1] for text in texts])),
            TAXONOMY,
        ),
    }
    parameters = dict(system.model.named_parameters())
    for name in ("clip.visual.class_embedding", "clip.visual.proj", "text_alpha.log", *text_parameters(parameters)):
        parameter = parameters[name]
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter += 1e-3
            if name.startswith("clip.visual."):
                assert texts_key(dataclasses.replace(system), TAXONOMY) == key, name
            else:
                others[name] = texts_key(dataclasses.replace(system), TAXONOMY)
            parameter.copy_(before)
    assert texts_key(dataclasses.replace(system), TAXONOMY) == key
    assert len({key, *others.values()}) == len(others) + 1
    assert len(others) > 10


def test_composed_and_decomposed_letters_are_two_texts(system):
    lineages = [(*names[:-1], f"{names[-1]}\u00e9") for names in LINEAGES]
    apart = [(*names[:-1], f"{names[-1]}e\u0301") for names in LINEAGES]
    assert Taxonomy.from_lineages(lineages).sha256 == Taxonomy.from_lineages(apart).sha256
    assert texts_key(system, Taxonomy.from_lineages(lineages)) != texts_key(system, Taxonomy.from_lineages(apart))


@pytest.mark.parametrize("damage", ["cut", "a bit", "empty", "rubbish", "header of 2 to the 60th", "other shape"])
def test_damaged_file_is_computed_anew_and_told_once(system, computed, told, tmp_path, damage):
    right = taxa_texts(system, TAXONOMY, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "a bit":
        data[-7] ^= 1
    if damage == "other shape":
        text_cache._write(file, right[1:])
    else:
        file.write_bytes(
            {
                "cut": data[:-100],
                "a bit": data,
                "empty": b"",
                "rubbish": b"<html>" * 100,
                "header of 2 to the 60th": (1 << 60).to_bytes(8, "little") + data[8:],
            }[damage]
        )
    assert torch.equal(taxa_texts(system, TAXONOMY, cache=tmp_path, tell=told.append), right)
    assert len(told) == 1
    assert "damaged" in told[0]
    assert torch.equal(taxa_texts(system, TAXONOMY, cache=tmp_path, tell=told.append), right)
    assert (len(told), len(computed)) == (1, 2)


def test_folder_that_cannot_be_used_is_told_once(system, computed, told, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(taxa_texts(system, TAXONOMY, cache=tmp_path / "file" / "cache", tell=told.append)) == TAXONOMY.size
    assert len(told) == len(computed) == 1
    assert "not cached" in told[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_told_once(system, told, tmp_path):
    tmp_path.chmod(0o500)
    assert len(taxa_texts(system, TAXONOMY, cache=tmp_path, tell=told.append)) == TAXONOMY.size
    assert len(told) == 1


def limited(system, folder, queue):
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    told = []
    queue.put((len(taxa_texts(system, TAXONOMY, cache=folder, tell=told.append)), told))


def test_full_disk_leaves_no_half_file(system, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    torch.set_num_threads(1)
    process = context.Process(target=limited, args=(system, tmp_path, queue))
    process.start()
    size, told = queue.get(timeout=120)
    process.join(60)
    assert size == TAXONOMY.size
    assert len(told) == 1
    assert not list(tmp_path.iterdir())


def several(system, folder, queue):
    told = []
    queue.put((taxa_texts(system, TAXONOMY, cache=folder, tell=told.append).numpy().tobytes(), told))


def test_several_processes_at_once(system, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    torch.set_num_threads(1)
    processes = [context.Process(target=several, args=(system, tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert len({data for data, _ in found}) == 1
    assert not any(told for _, told in found)
    assert len(list(tmp_path.iterdir())) == 1
