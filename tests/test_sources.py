"""Which shards a list, a folder, a glob or a range means."""

import pytest
from shards_by_hand import robin, sample, write_tar

from bioclip_hc.data.sources import expand_shards
from bioclip_hc.data.writer import write_shards


def test_shards_are_named_by_folder_file_glob_range_or_list(tmp_path):
    paths = write_shards([sample(i) for i in range(12)], tmp_path, samples_per_shard=1)
    folder = str(tmp_path)
    assert expand_shards(folder) == expand_shards(tmp_path) == paths
    assert expand_shards(paths[3]) == paths[3:4]
    assert expand_shards(f"{folder}/shard-00000[0-3].tar") == paths[:4]
    assert expand_shards(f"{folder}/shard-{{000008..000011}}.tar") == paths[8:]
    assert expand_shards([paths[5], f"{folder}/./shard-000005.tar", f"{folder}/*0.tar"]) == [
        paths[0],
        paths[5],
        paths[10],
    ]


def test_order_is_by_name_then_as_given_wherever_folders_lie(tmp_path):
    for folder in ("a", "z"):
        write_shards([sample(0), sample(1)], tmp_path / folder, samples_per_shard=1)
    names = [f"{path.parent.name}{path.name[-5]}" for path in expand_shards([tmp_path / "z", tmp_path / "a"])]
    assert names == ["z0", "a0", "z1", "a1"]


def test_a_literal_name_wins_over_a_pattern(tmp_path):
    path = write_tar(tmp_path / "a{1..2}[x].tar", robin("a"))
    assert expand_shards(str(path)) == [path]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ([], ValueError, "no shards given"),
        ("", ValueError, "path is empty"),
        ("pipe:cat /etc/passwd", ValueError, r"pipe:cat \.\.\.'.*only with --allow-pipe"),
        ("ftp://example.org/a.tar", ValueError, "ftp: is not read; name local files"),
        ("https://example.org/{{0..3.tar", ValueError, "unbalanced braces"),
        ("https://example.org/{{0..9999999}}.tar", ValueError, "more than 1000000 shards"),
        ("{folder}", FileNotFoundError, r"no \*\.tar in this folder"),
        ("{folder}/none.tar", FileNotFoundError, "there is no"),
        ("{folder}/*.tar", FileNotFoundError, "there is no"),
        ("{folder}/{{3..9}}.tar", FileNotFoundError, r"there is no '.*/3\.tar'"),
        ("{folder}/{{0..999999999}}.tar", ValueError, "more than 1000000 shards"),
        ("{folder}/{{0..9999}}-{{0..9999}}.tar", ValueError, "more than 1000000 shards"),
        ("{folder}/{{0..3.tar", ValueError, "unbalanced braces"),
    ],
)
def test_missing_shards_are_named(tmp_path, spec, error, message):
    if isinstance(spec, str):
        spec = spec.format(folder=tmp_path)
    with pytest.raises(error, match=message):
        expand_shards(spec)


def test_a_folder_named_like_a_shard_is_refused_however_it_is_named(tmp_path):
    (tmp_path / "x.tar").mkdir()
    inner = write_tar(tmp_path / "x.tar" / "inner.tar", robin("a"))
    for spec in (tmp_path, tmp_path / "x.tar", f"{tmp_path}/*.tar"):
        with pytest.raises(ValueError, match=r"x\.tar is not a file but a folder"):
            expand_shards(spec)
    assert expand_shards(inner) == [inner]


def test_a_second_name_of_a_shard_is_told(tmp_path):
    a = write_tar(tmp_path / "a.tar", robin("a"))
    (tmp_path / "b.tar").symlink_to(a)
    told = []
    assert expand_shards([tmp_path, a], say=told.append) == [a]
    assert told == [f"{tmp_path / 'b.tar'} is the same file as {a}: read once, under that name"]
