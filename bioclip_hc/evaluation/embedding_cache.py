"""Image embeddings on disk, found by the SHA-256 of a photograph's bytes.

# D embed

    FOLDER/FINGERPRINT/HOST-PID-RANDOM.part   what one process embedded with one system

A part is a header and records of one size, key, vector, CRC-32, and grows at its end only. Nothing in it is
trusted: a record whose checksum does not fit, or that ends too soon, is as if it were not there, and so is a file
that is no part. Each process writes a part of its own, so that any number of them, on any hosts, need not wait for
each other.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from bioclip_hc.data.cache import default_cache, say
from bioclip_hc.data.sample import PathLike

MAGIC = b"bioclip_hc embeddings 1\n"
HEADER = np.dtype([("magic", "u1", len(MAGIC)), ("system", "u1", 32), ("width", "<u4"), ("crc", "<u4")])
BLOCK = 4 << 20  # bytes read at once
KEY = 32  # bytes of a SHA-256
FOREIGN = "is no part of this cache"


def default_embedding_cache() -> Path:
    """$XDG_CACHE_HOME/bioclip_hc/embeddings, or the same under ~/.cache."""
    return default_cache().with_name("embeddings")


class EmbeddingCache:
    """The embeddings of one system.

    Args:
        folder: of all systems; made when there is something to write.
        fingerprint: of the system, a SHA-256 in hex: of all on which its image embeddings depend.
        width: D.
        tell: takes a line on whatever is damaged or cannot be written. Neither is an error: what is not found here
            is computed.
    """

    def __init__(self, folder: PathLike, fingerprint: str, width: int, tell: Callable[[str], object] = say) -> None:
        self.folder = Path(folder).expanduser() / fingerprint
        self._tell = tell
        self._record = np.dtype([("key", "u1", KEY), ("vector", "<f4", width), ("crc", "<u4")])
        header = np.zeros(1, HEADER)
        header["magic"] = np.frombuffer(MAGIC, np.uint8)
        header["system"] = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
        header["width"] = width
        header["crc"] = zlib.crc32(header.tobytes()[:-4])
        self._header = header.tobytes()
        self._part: int | None = None  # descriptor
        self._writable = True

    def look_up(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Which of the keys (n), SHA-256 each, are here.

        Returns:
            found (n,) bool; vectors (n, D) float32, 0 where not found.
        """
        place = {key: i for i, key in enumerate(keys)}
        found = np.zeros(len(keys), dtype=bool)
        vectors = np.zeros((len(keys), self._record["vector"].shape[0]), dtype=np.float32)
        for path in sorted(self.folder.glob("*.part")):
            if not path.is_file():  # a pipe might never end
                continue
            damage: list[str] = []
            try:
                for records in self._whole(path, damage):
                    at = [place.get(key.tobytes(), -1) for key in records["key"]]
                    rows = np.array(at, dtype=np.int64)
                    vectors[rows[rows >= 0]] = records["vector"][rows >= 0]
                    found[rows[rows >= 0]] = True
            except OSError as error:
                self._tell(f"the embeddings in {path} cannot be read ({error.strerror}) and are computed anew")
                continue
            if damage:
                self._mend(path, damage)
        rows = np.array([place[key] for key in keys], dtype=np.int64)  # of a key that is asked for twice the last
        return found[rows], vectors[rows]

    def add(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep vectors (n, D) float32 under their keys (n). What cannot be written is told once, and not kept."""
        records = np.zeros(len(keys), self._record)
        records["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY)
        records["vector"] = vectors
        records["crc"] = _checksums(records)
        if not self._writable or not len(keys):
            return
        try:
            if self._part is None:
                self._part = self._begin()
            _write(self._part, records.tobytes())
        except OSError as error:
            self._writable = False
            self._tell(f"embeddings are not kept: {self.folder} cannot be written ({error.strerror})")

    def close(self) -> None:
        """End the part of this process; a further `add` begins another."""
        if self._part is not None:
            os.close(self._part)
            self._part = None

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _begin(self) -> int:
        """A new part, locked for as long as this process writes it, so that it is known to be unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.part"
        part = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(part, self._header)
        return part

    def _whole(self, path: Path, damage: list[str]) -> Iterator[np.ndarray]:
        """Blocks of records whose checksums fit; what is wrong with the others goes into `damage`."""
        size = self._record.itemsize
        with path.open("rb", buffering=0) as file:
            start = file.read(len(self._header))
            if start != self._header:
                if not self._header.startswith(start):  # else it is being begun, or was when its writer was killed
                    damage.append(FOREIGN)
                return
            wrong, left = 0, b""
            while data := file.read(max(1, BLOCK // size) * size):
                data = left + data
                left = data[len(data) // size * size :]
                records = np.frombuffer(data, self._record, len(data) // size)
                good = _checksums(records) == records["crc"]
                wrong += int((~good).sum())
                yield records[good]
        if wrong:
            damage.append(f"has {wrong} damaged records")
        if left:
            damage.append("ends within a record")

    def _mend(self, path: Path, damage: Sequence[str]) -> None:
        """Tell of damage, and leave of a part what is whole, unless a process is writing it now."""
        with path.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # its end is not written yet, no more
            except OSError:  # a file system without locks
                pass
            if FOREIGN in damage:
                self._tell(f"{path} {FOREIGN} and is not read; delete it")
                return
            self._tell(f"{path} {' and '.join(damage)}; the embeddings that are lost are computed anew")
            aside = path.with_name(f"{path.name}.{os.getpid()}.new")
            with suppress(OSError):  # a folder that cannot be written: told again next time
                try:
                    with aside.open("xb") as file:
                        file.write(self._header)
                        for records in self._whole(path, []):
                            file.write(records.tobytes())
                    os.replace(aside, path)
                finally:
                    aside.unlink(missing_ok=True)


def _checksums(records: np.ndarray) -> np.ndarray:
    """(n,) CRC-32 of each record's key and vector."""
    size = records.dtype.itemsize
    data = memoryview(records.tobytes())
    sums = [zlib.crc32(data[i : i + size - 4]) for i in range(0, len(data), size)]
    return np.array(sums, dtype=np.uint32)


def _write(descriptor: int, data: bytes) -> None:
    """All of it, or OSError: the kernel may take a part only where a disk is nearly full."""
    left = memoryview(data)
    while len(left):
        left = left[os.write(descriptor, left) :]
