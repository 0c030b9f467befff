"""Which addresses of shards are read, how they are written down, and what they are called here."""

import time

import pytest

from bioclip_hc.data.urls import is_remote, parse, redacted, shown, split_specs

COMMIT = "ffa2a31" + "0" * 33


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a.tar", "ftp: is not read; name local files .* or https://"),
        ("file:///etc/passwd", "file: is not read"),
        ("FILE:///etc/passwd", "file: is not read"),
        ("local:///etc/passwd", "local: is not read"),
        ("memory://a.tar", "memory: is not read"),
        ("data:text/plain,a", "data: is not read"),
        ("simplecache::https://example.org/a.tar", "simplecache: is not read"),
        ("https::file:///etc/passwd", "https: is not read"),
        ("s3::pipe:touch a", "s3: is not read"),
        ("zip://a.tar::https://example.org/b.zip", "zip: is not read"),
        ("reference://", "reference: is not read"),
        ("https:example.org/a.tar", "https: is not read"),
        ("https:///a.tar", "write https://HOST/PATH.tar"),
        ("https://example.org", "names a folder"),
        ("https://example.org/folder/", r"names a folder; name its shards, such as shard-\{000000\.\.000010\}"),
        ("https://example.org/*.tar", "a URL is no pattern; name a range"),
        ("https://example.org:port/a.tar", "not a URL"),
        ("https://[::1/a.tar", "not a URL"),
        ("https://example.org/a\r\nHost: other/b.tar", "no control characters"),
        ("https://example.org/a\0.tar", "no control characters"),
        ("s3:///a.tar", "write s3://BUCKET/PATH.tar"),
        ("s3://key:secret@bucket/a.tar", "write s3://BUCKET/PATH.tar"),
        ("hf://datasets/a/b/c.tar", "without @COMMIT the shards could change .* copy the commit from"),
        ("hf://datasets/a/b@main/c.tar", "'main' is no commit, and branches and tags can move"),
        ("hf://datasets/a/b@refs%2Fpr%2F1/c.tar", "is no commit"),
        (f"hf://a/b@{COMMIT}/c.tar", "write hf://datasets/OWNER/NAME@COMMIT/PATH.tar$"),
        (f"hf://datasets/a/b@{COMMIT}/../../c.tar", "no path in a repository"),
        (f"hf://datasets/a/b@{COMMIT}/", "write hf://datasets"),
        ("pipe:cat a.tar", "only with --allow-pipe on the command line"),
        ("PIPE:cat a.tar", "only with --allow-pipe on the command line"),
        ("Pipe:cat a.tar", "only with --allow-pipe on the command line"),
    ],
)
def test_other_addresses_are_refused(url, message):
    assert is_remote(url)
    with pytest.raises(ValueError, match=f"(?s)^shards .*: .*{message}"):
        parse(url)


def test_an_empty_command_is_refused():
    with pytest.raises(ValueError, match="no command to run"):
        parse("pipe: ", allow_pipe=True)


SECRETS = [
    "https://ann:s3cret@example.org/set/a.tar",
    "https://ann:s3cret@with-at@example.org/set/a.tar",
    "https://example.org/set/a.tar?X-Amz-Signature=s3cret&X-Amz-Date=1",
    "http://example.org/a.tar?token=s3cret#s3cret",
    "pipe:curl -H 'Authorization: Bearer s3cret' https://example.org/a.tar",
]


@pytest.mark.parametrize("url", SECRETS)
def test_secrets_are_not_shown(url):
    address = parse(url, allow_pipe=True)
    for text in (str(address), repr(address), shown(url), shown(url.replace("a.tar", "{0..9}.tar"))):
        assert "s3cret" not in text
    if not url.startswith("pipe:"):
        assert "s3cret" not in redacted(f"cannot read {url} or '{url}' ({url})")
        assert "example.org" in str(address)
        for wrong in (url + "*\n", url.replace("example.org", "example.org:x")):
            with pytest.raises(ValueError, match="shards") as error:
                parse(wrong.replace("?", "*?"))
            assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:pa s3cret@example.org/a.tar",
        "https://ann:pa/s3cret@example.org/a.tar",
        "https://ann:s3cret/pa@example.org/a.tar",
        "https://ann:s3cret?pa@example.org/a.tar",
        "https://ann:pa#s3cret@example.org/a.tar",
        "https:/ann:s3cret@example.org/a.tar",
        "https:ann:s3cret@example.org/a.tar",
        "ftp://ann:pa/s3cret@example.org/a.tar",
        "s3://ann:pa/s3cret@bucket/a.tar?x",
    ],
)
def test_secrets_of_what_is_refused_are_not_shown(url):
    assert "s3cret" not in shown(url)
    if not url.startswith("s3:"):
        with pytest.raises(ValueError, match=r"^shards '") as error:
            parse(url)
        assert "s3cret" not in str(error.value)
        assert "'pa'" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("AWS_SECRET_ACCESS_KEY=s3cret aws s3 cp s3://b/a.tar -", "pipe:aws ..."),
        ("A='1 2' B=\"s3cret 3\" /usr/bin/curl-7.1 s3cret", "pipe:curl-7.1 ..."),
        ("A=$(echo s3cret) cat a.tar", "pipe:..."),
        ("A=1;login s3cret x", "pipe:..."),
        ("A=s3cret", "pipe:..."),
        ("A='s3cret x", "pipe:..."),
        ("$(s3cret)", "pipe:..."),
        ("cat a.tar", "pipe:cat ..."),
    ],
)
def test_of_a_command_the_program_is_shown(command, program):
    assert str(parse(f"pipe:{command}", allow_pipe=True)) == shown(f"pipe:{command}") == program


def test_what_others_say_is_cut_before_it_is_searched():
    begun = time.process_time()
    assert len(redacted("a" * 1_000_000)) < 2100
    assert len(redacted("a://" * 1_000_000)) < 2100
    assert "s3cret" not in redacted(f"{'x ' * 980} https://ann:s3cret{'t' * 99}@example.org")
    assert time.process_time() - begun < 2
    assert redacted("x" * 1990 + " y") == "x" * 1990 + " y"


def test_what_is_no_secret_is_shown():
    assert shown("https://example.org:8000/a@b/c.tar") == "https://...@b/c.tar"  # whether it is one cannot be said
    for url in (f"hf://datasets/a/b@{COMMIT}/c.tar", "https://example.org:8000/a/c.tar", "s3://bucket/a.tar"):
        assert shown(url) == redacted(url) == str(parse(url)) == url
    assert shown("/data/a?b/c@d.tar") == "/data/a?b/c@d.tar"
    assert shown("https://u:p@h.org/a.tar?b=c") == "https://h.org/a.tar?..."


def test_users_are_asked_for_apart_from_the_url():
    address = parse("https://ann:a%40b@example.org:8000/a.tar?x=1#y")
    assert (address.target, address.user) == ("https://example.org:8000/a.tar?x=1", "ann:a@b")


def test_the_key_tells_shards_apart_but_not_their_signatures():
    base = "https://example.org/set/a.tar"
    same = [base, "https://ann:secret@example.org/set/a.tar", "https://EXAMPLE.org/set/a.tar#part"]
    same += [f"{base}?X-Amz-Signature={n}&X-Amz-Date={n}&X-Amz-Security-Token={n}" for n in range(2)]
    same += [f"{base}?sv=2&se={n}&sp=r&sig={n}" for n in range(2)]
    other = [f"{base}?shard={n}" for n in range(2)] + [f"{base}?se={n}" for n in range(2)]
    other += [f"{base}?sig=1&shard={n}" for n in (8, 9)]
    other += ["http://example.org/set/a.tar", "https://example.org/set2/a.tar", "https://example.org/set/b.tar"]
    other += ["https://example.org:8000/set/a.tar", "s3://example.org/set/a.tar", "gs://example.org/set/a.tar"]
    other += [f"hf://datasets/set/a@{COMMIT}/a.tar", f"hf://datasets/set/a@{COMMIT[::-1]}/a.tar"]
    assert len({parse(url).key for url in same}) == 1
    assert len({parse(url).key for url in same + other}) == 1 + len(other)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/set/shard-000001.tar", "shard-000001.tar"),
        ("https://example.org/set/shard%20a.tar", "shard a.tar"),
        ("https://example.org/..%2F..%2Fetc%2Fpasswd", ".._.._etc_passwd.tar"),
        ("https://example.org/%2e%2e", "...tar"),
        ("https://example.org/a%00b.tar", "a_b.tar"),
        ("https://example.org/a\\b.tar", "a_b.tar"),
        ("https://example.org/source.json", "source.json.tar"),
        ("https://example.org/lock", "lock.tar"),
        ("https://example.org/ä.tar", "ä.tar"),
        ("pipe:gsutil cat gs://bucket/shard-000003.tar | cat", "shard-000003.tar"),
    ],
)
def test_names_stay_in_their_folder(url, name):
    assert parse(url, allow_pipe=True).name == name


def test_a_long_name_gives_way():
    long = [parse(f"https://example.org/{letter * 300}.tar") for letter in "ab"]
    assert all(len(address.name) < 60 and address.name.endswith(".tar") for address in long)
    assert parse("pipe:make-a-shard", allow_pipe=True).name.startswith("pipe-")


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ("a/{1,2}.tar,b/{3..4}.tar", ["a/{1,2}.tar", "b/{3..4}.tar"]),
        ("a,pipe:cut -d, -f1 x | y, z", ["a", "pipe:cut -d, -f1 x | y, z"]),
        ("https://h/a.tar?x=%2C,b", ["https://h/a.tar?x=%2C", "b"]),
        ("a,,b", ["a", "", "b"]),
        ("a},b", ["a}", "b"]),
    ],
)
def test_commas_separate(text, specs):
    assert split_specs(text) == specs


@pytest.mark.parametrize("path", ["/data/a.tar", "a:b/c.tar"[1:], "./data:2024/a.tar", "C:/a.tar", " pipe:touch a"])
def test_paths_are_no_addresses(path):
    assert not is_remote(path)
