"""Addresses of shards that are no local files: which are accepted, and how they are written without secrets."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

FSSPEC = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""Scheme -> the package with which fsspec reads it."""

ACCEPTED = f"https://, http://, hf://datasets/OWNER/NAME@COMMIT/PATH, {', '.join(f'{s}://' for s in FSSPEC)}"
MAX_SAID = 2000  # characters of what others say
MAX_NAME_BYTES = 150  # of 255, which leaves room for what is written beside a shard

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C:\ is none
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)@([^/]+)/(.+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# what signing adds to an address, other each time: S3 and Google; CloudFront and older Google; Azure
_SIGNED = {"x-amz-signature", "x-goog-signature", "signature", "sig"}
_SIGNATURE = re.compile(
    "x-(amz|goog)-.*|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    "|sig|se|sp|sv|sr|st|spr|sip|ss|srt|skoid|sktid|skt|ske|sks|skv"
)
_IN_TEXT = re.compile(  # a scheme is short and begins where no word goes on, so that the time stays linear
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{1,20}://)(?:[^\s/]*@)?([^\s?#'\"<>]*)([?#][^\s'\"<>]*)?"
)


@dataclass(frozen=True)
class Address:
    """Where one shard is; written, it shows no secrets.

    Attributes:
        scheme: lower case; "pipe" for the output of a command.
        target: what is asked for, secrets included: the URL without its user, "OWNER/NAME@COMMIT/PATH", a command.
        user: "name:password" of the URL, or "".
        name: the file name that the shard has here, ending in .tar.
        key: 32 hexadecimal digits that tell addresses apart. Users and signatures are left out, for they change
            while the shard stays.
    """

    scheme: str
    target: str = field(repr=False)
    user: str = field(repr=False)
    name: str
    key: str
    shown: str

    def __str__(self) -> str:
        return self.shown


def is_remote(spec: str) -> bool:
    """Whether this is an address, or meant as one, rather than a path."""
    return _SCHEME.match(spec) is not None


def split_specs(text: str) -> list[str]:
    """What a comma-separated list names. Commas in braces do not separate, and a `pipe:` takes all that follows."""
    specs, depth = [""], 0
    for position, letter in enumerate(text):
        if not specs[-1].strip() and text.startswith("pipe:", position):
            specs[-1] = text[position:]
            break
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            specs.append("")
        else:
            specs[-1] += letter
    return [spec.strip() for spec in specs]


def redacted(text: str) -> str:
    """Text in which no URL shows its user, password, query or fragment; what is beyond 2,000 characters is cut."""
    if len(text) > MAX_SAID:  # at a blank: of a user cut in two the first half would not be known as one
        text = text[:MAX_SAID].rpartition(" ")[0] + " ..."
    return _IN_TEXT.sub(lambda url: url[1] + url[2] + (f"{url[3][0]}..." if url[3] else ""), text)


def shown(spec: str) -> str:
    """A shard's address, or a range of them, without secrets; of a command only the program.

    Passwords hold what should be escaped in them, too: all up to the last @ may be one.
    """
    scheme = _SCHEME.match(spec)
    if scheme is None or _HUB.fullmatch(spec):
        return redacted(spec)
    if scheme[1].lower() == "pipe":
        return f"pipe:{_program(spec[5:])} ...".replace(": ", ":")
    start = scheme.end() + len(re.match("/*", spec[scheme.end() :])[0])  # type: ignore[index]
    before, _, rest = spec[start:].rpartition("@")
    if re.search("[?#]", before):
        return f"{spec[:start]}..."
    cut = "...@" if "/" in before else ""  # it may have been a folder's name
    return spec[:start] + cut + re.sub(r"(?s)([?#]).*", r"\1...", rest)


def _program(command: str) -> str:
    """The name of what a command starts, "" where that is not plain to see."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    for word in words:
        if not re.match(r"\w+\+?=", word):
            name = word.rpartition("/")[2]
            return name if re.fullmatch(r"[\w.+-]+", name) else ""
        if re.search(r"[;&|<>()$`\n]", word):  # more than a variable: what comes next may be an argument
            return ""
    return ""


def parse(spec: str, *, allow_pipe: bool = False) -> Address:
    """The address of one shard.

    Raises:
        ValueError: not one that is accepted, and why.
    """
    match = _SCHEME.match(spec)
    scheme = match[1].lower() if match else ""
    if scheme == "pipe":
        return _pipe(spec[5:], allow_pipe)
    where = f"shards {shown(spec)!r}"
    if scheme not in ("http", "https", "hf", *FSSPEC) or "::" in spec.partition("://")[0] or "://" not in spec:
        raise ValueError(
            f"{where}: {scheme}: is not read; name local files (those with a colon as ./{scheme}:...) or {ACCEPTED}"
        )
    if re.search(r"[\x00-\x1f\x7f]", spec):
        raise ValueError(f"{where}: a URL holds no control characters; remove them")
    if "*" in spec:
        raise ValueError(f"{where}: a URL is no pattern; name a range, such as shard-{{000000..000010}}.tar")
    return _hub(spec, where) if scheme == "hf" else _url(scheme, spec, where)


def _pipe(command: str, allowed: bool) -> Address:
    where = shown(f"pipe:{command}")
    if not allowed:
        raise ValueError(
            f"shards {where!r}: this runs a command, which is done only with --allow-pipe on the command line"
        )
    if not command.strip() or "\0" in command:
        raise ValueError(f"shards {where!r}: there is no command to run; write pipe:COMMAND")
    named = re.findall(r"[\w.+=@-]+\.tar\b", command)
    key = _digest("pipe", command)
    return Address("pipe", command, "", _file_name(named[-1] if named else f"pipe-{key}"), key, where)


def _hub(spec: str, where: str) -> Address:
    match = _HUB.fullmatch("hf" + spec[2:])
    if match is None:
        pinned = "@" in spec
        raise ValueError(
            f"{where}: write hf://datasets/OWNER/NAME@COMMIT/PATH.tar"
            + ("" if pinned else "; without @COMMIT the shards could change under a run: copy the commit from the "
               "dataset's page, Files, History")
        )  # fmt: skip
    repository, commit, path = match.groups()
    if not _COMMIT.fullmatch(commit):
        raise ValueError(
            f"{where}: {commit!r} is no commit, and branches and tags can move; copy the commit (40 hexadecimal "
            "digits) from the dataset's page, Files, History"
        )
    parts = path.split("/")
    if not all(part.strip(".") for part in parts) or "\\" in path:
        raise ValueError(f"{where}: {path!r} is no path in a repository")
    return Address(
        "hf", f"{repository}@{commit}/{path}", "", _file_name(parts[-1]), _digest("hf", spec), shown(spec)
    )


def _url(scheme: str, spec: str, where: str) -> Address:
    try:
        url = urlsplit(spec)
        host, _ = url.hostname, url.port
    except ValueError:  # which quotes what may be a part of a password
        raise ValueError(
            f"{where}: not a URL: its host or port is none; write / ? # and @ of a password as %XX"
        ) from None
    if re.search(r"\s", url.netloc):
        raise ValueError(f"{where}: not a URL: a blank before its path; write it as %20")
    user, _, place = url.netloc.rpartition("@")
    if not host or (user and scheme in FSSPEC):
        raise ValueError(f"{where}: write {scheme}://{'HOST' if scheme.startswith('http') else 'BUCKET'}/PATH.tar")
    base = url.path.rpartition("/")[2]
    if not base:
        raise ValueError(f"{where}: names a folder; name its shards, such as shard-{{000000..000010}}.tar")
    if scheme in FSSPEC:
        return Address(scheme, spec, "", _file_name(base), _digest(scheme, place, url.path, url.query), shown(spec))
    path = quote(url.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(url.query, safe="/%:@!$&'()*+,;=~-._?")
    lasting = parse_qsl(url.query, keep_blank_values=True)
    if any(name.lower() in _SIGNED for name, _ in lasting):
        lasting = [(name, value) for name, value in lasting if not _SIGNATURE.fullmatch(name.lower())]
    return Address(
        scheme,
        urlunsplit((scheme, place, path, query, "")),
        unquote(user),
        _file_name(unquote(base)),
        _digest(scheme, place.lower(), path, urlencode(lasting)),
        shown(spec),
    )


def beside(address: Address, name: str) -> str:
    """The target of another file in the same remote folder."""
    if address.scheme in FSSPEC:
        return address.target.rpartition("/")[0] + f"/{name}"
    url = urlsplit(address.target)
    return urlunsplit(url._replace(path=url.path.rpartition("/")[0] + f"/{name}"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _file_name(name: str) -> str:
    """The remote name if every file system takes it and it stays in its folder, else one that does."""
    name = re.sub(r"[^\w.+=@ -]", "_", name)
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        name = _digest(name)
    return name if name.endswith(".tar") else f"{name}.tar"
