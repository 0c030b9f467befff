"""Runs of train.py whose shards are elsewhere."""

import json
import time
from pathlib import Path

import pytest
import remote_server as lab
import small_run
from small_run import finish, finish_together, start

HALF = ("--run.stop-after", "6")
DIRECT = {"no_proxy": "127.0.0.1"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return small_run.write_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="module")
def local(setup, tmp_path_factory):
    """The folder of a run on local shards."""
    output = tmp_path_factory.mktemp("runs") / "local"
    finish(setup, output, "--data.workers", "1")
    return output


@pytest.fixture
def server(setup):
    with lab.serving() as server:
        server.files = {f"/set/{path.name}": path.read_bytes() for path in (setup / "shards").glob("*.tar")}
        yield server


def model_of(output: Path) -> bytes:
    return (output / "model" / "open_clip_model.safetensors").read_bytes()


def test_a_run_over_http_is_the_local_run_and_resumes_offline_and_from_local_files(setup, local, server, tmp_path):
    url = server.url.replace("http://", "http://ann:s3cret@") + "/set/shard-{000000..000002}.tar?Signature=s3cret"
    there = ("--data.train", url, "--data.cache", str(tmp_path / "cache"))
    printed = finish(setup, tmp_path / "remote", *there, *HALF, **DIRECT)
    assert (
        f"fetching 3 remote shards, the first {server.url}/set/shard-000000.tar?..., into {tmp_path}/cache"
        in printed
    )
    assert "fetched 3 of 3 remote shards" in printed
    config = json.loads((tmp_path / "remote" / "config.json").read_text())
    assert config["data"]["train"] == f"{server.url}/set/shard-{{000000..000002}}.tar?..."
    asked = len(server.asked)
    finish(setup, tmp_path / "remote", "--resume", *there, "--run.stop-after", "8")
    assert len(server.asked) == asked  # the cache sufficed
    finish(setup, tmp_path / "remote", "--resume")  # the same shards, in a local folder
    assert model_of(tmp_path / "remote") == model_of(local)
    inputs = [json.loads((run / "inputs.json").read_text()) for run in (local, tmp_path / "remote")]
    assert inputs[0] == inputs[1]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".md")]
    assert not [path for path in written if "s3cret" in path.read_text()]
    assert "s3cret" not in printed


def test_two_processes_fetch_each_shard_once_and_a_slow_server_is_no_hang(setup, server, tmp_path):
    def slowly(handler, body):
        time.sleep(4)
        lab.well(handler, body)

    server.does("/set/shard-000001.tar", slowly)
    there = (
        "--data.train",
        server.url + "/set/shard-{000000..000002}.tar",
        "--data.cache",
        str(tmp_path / "cache"),
    )
    printed = finish_together(
        setup, tmp_path / "two", 2, *there, "--run.silence", "1.5", "--run.stop-after", "2", **DIRECT
    )
    assert "fetched 3 of 3 remote shards" in printed[0]
    assert "fetch" not in printed[1]
    assert [server.count(path) for path in sorted(server.files)] == [1, 1, 1]


def test_what_one_process_cannot_fetch_is_one_error_on_all(setup, server, tmp_path):
    there = (
        "--data.train",
        server.url + "/set/shard-{000000..000003}.tar",
        "--data.cache",
        str(tmp_path / "cache"),
    )
    printed = finish_together(setup, tmp_path / "two", 2, *there, code=2, **DIRECT)
    for text in printed:
        said = [line for line in text.splitlines() if line.startswith("train.py: ")]
        assert len(said) == 1
        assert "the shards cannot be fetched: process " in said[0]
        assert f"{server.url}/set/shard-000003.tar: the server answers 404 Not Found; fix the address" in said[0]


def test_a_signal_ends_a_run_that_is_fetching(setup, server, tmp_path):
    url = server.does("/set/shard-000000.tar", lab.silent, lab.silent)
    run = start(setup, tmp_path / "run", "--data.train", url, "--data.cache", str(tmp_path / "cache"), **DIRECT)
    end = time.monotonic() + 60
    while not server.asked:
        assert time.monotonic() < end
        time.sleep(0.02)
    run.kill(15)
    assert run.wait(20) == 143


def test_commands_run_only_by_a_flag_of_the_command_line(setup, local, tmp_path):
    bait, shards = tmp_path / "bait", setup / "shards"
    command = f"pipe:touch {bait}; cat {shards}/shard-00000{{0..2}}.tar"
    config = (setup / "run.toml").read_text()
    told = {
        "": (setup / "run.toml", ("--data.train", command), "only with --allow-pipe on the command line"),
        "in a list": (setup / "run.toml", ("--data.train", f"{shards},{command}"), "only with --allow-pipe"),
        "as taxonomy": (setup / "run.toml", ("--data.taxonomy", command), "pipe:touch"),
        "as cache": (setup / "run.toml", ("--data.cache", command), None),
        "by a key": (config.replace("[data]", "[data]\nallow_pipe = true"), (), "has no key 'allow_pipe'"),
        "by a key of run": (config.replace("[run]", "[run]\nallow-pipe = true"), (), "has no key 'allow-pipe'"),
        "in a file": (config.replace("[data]", f'[data]\ntrain = "{command}"'), (), None),
    }
    for name, (file, more, said) in told.items():
        if isinstance(file, str):
            (tmp_path / "its.toml").write_text(file)
            (tmp_path / "tiny.json").write_text((setup / "tiny.json").read_text())
            file = tmp_path / "its.toml"
        words = [str(file), "--run.output", str(tmp_path / "run" / name), "--run.stop-after", "1"]
        if name == "in a file":
            said = "only with --allow-pipe"
        elif not (more and more[0] == "--data.train"):
            words += ["--data.train", str(shards)]
        run = small_run.server().start([*words, *more], tmp_path / f"{name}.terminal")
        assert run.wait() == (2 if said else 0), run.printed
        assert (said or "") in run.printed, name
        assert not bait.exists(), name
    words = ("--data.train", command, "--data.cache", str(tmp_path / "cache"), "--allow-pipe")
    finish(setup, tmp_path / "allowed", *words)
    assert bait.exists()
    assert model_of(tmp_path / "allowed") == model_of(local)
    assert json.loads((tmp_path / "allowed" / "config.json").read_text())["data"]["train"] == "pipe:touch ..."
