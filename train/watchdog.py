"""Who is lost is named, and everything ends: processes watch each other, and each watches its data workers.

The first process is the hub. Every other one holds a connection to it, over which both tell each other every two
seconds where they are. A connection that ends without a word is a process that died; silence is one that is
stopped, or a host cut off. Whoever finds out tells all; every process names the lost one on stderr and ends with
EXIT_LOST, because collective operations would wait for it, the longest for ever. A long step or save is no silence:
a thread of its own does the talking. Clocks of two hosts are never compared, and time counts only while the
observer itself runs, so a run that is stopped and continued as a whole accuses no one.

Connections show that they belong to this run by a token that went through the process group.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import torch.distributed as dist

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.workers import IDLE, Sight

EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the run, start it again with --resume
EXIT_ERROR = (
    1  # of those who end because another ended by an error; one that was told to stop hands on its own code
)

BEAT = 2.0  # seconds between signs of life, less where run.silence is short
CONNECT = 60.0  # seconds to reach the first process
DOUBT = 3.0  # seconds in which the cause of an error that may be a consequence can still show
SAME = 1.0  # seconds for a process to come upon the same error as another by itself
FAREWELL = 2.0  # seconds for last words to arrive
SAY = 5.0  # seconds for them to be written: a pipe or a file system may be what hangs
WAY_OUT = 30.0  # seconds for a process that ends by an error
MAX_LINE = 1 << 16  # bytes of a message
CONSEQUENCES = (dist.DistError, ConnectionError, EOFError)  # beside a plain RuntimeError, which gloo raises


READING = "reading data"  # the phase in which a process waits for its data workers


class Place(NamedTuple):
    """Where a process is."""

    step: int = 0
    phase: str = "starting"

    def __str__(self) -> str:
        return f"at step {self.step}, {self.phase}"


class Identity(NamedTuple):
    """A process, for people and for `kill`."""

    world_rank: int
    host: str
    pid: int
    started: int
    """When it started, in ticks after boot: another process under its pid started later."""
    system: str
    """The boot and the pid namespace of the host, in which the pid means this process."""

    def __str__(self) -> str:
        return f"process {self.world_rank} (host {self.host}, pid {self.pid})"

    def kill(self) -> None:
        """End it, stopped or not, where it still runs and this process can see it."""
        with contextlib.suppress(OSError):
            here = (socket.gethostname(), _system(), _started(self.pid))
            if here == (self.host, self.system, self.started):
                os.kill(self.pid, signal.SIGKILL)


def own_identity(world_rank: int) -> Identity:
    """This process'."""
    return Identity(world_rank, socket.gethostname(), os.getpid(), _started(os.getpid()), _system())


def _system() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> int:
    return int(_status(pid)[19])


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (the state) on; the second, a name, may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Link:
    """One end of a connection: a JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._rest = b""

    def send(self, kind: str, **facts: Any) -> None:
        """Send what can be sent at once; that nobody listens shows at `receive`."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps({"kind": kind, **facts}).encode() + b"\n")

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that are there.

        Raises:
            EOFError: the other end is closed.
            OSError: the connection broke.
            ValueError: what came is no message.
        """
        while True:
            try:
                data = self.socket.recv(MAX_LINE)
            except BlockingIOError:
                return
            except ConnectionResetError:  # as where it ended with something unread
                data = b""
            if not data:
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_LINE:
                raise ValueError("a message without end")
            for line in lines:
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("not a message")
                yield message


class Clock:
    """Seconds that this process has run: a gap of its own, in which it could hear nothing, counts as `limit`."""

    def __init__(self, limit: float) -> None:
        self.now, self._limit, self._last = 0.0, limit, time.monotonic()

    def tick(self) -> float:
        """Go on to now."""
        real = time.monotonic()
        self.now += min(real - self._last, self._limit)
        self._last = real
        return self.now


class End(NamedTuple):
    """Why a run ends before its time."""

    message: str
    process: int
    """Whose fault it is, by world rank."""
    code: int
    """With which the others end."""
    kill: bool = False
    """Whether that process may still be there and keep what it holds."""


class Peer:
    """Another process, as seen from here."""

    def __init__(self, identity: Identity, link: Link | None = None) -> None:
        self.identity, self.link = identity, link
        self.place: Place | None = None  # as it last said
        self.heard = 0.0  # when, on the observer's clock
        self.left = False  # it said goodbye
        self.lost: str | None = None  # its connection ended without, for this reason if any
        self.doubt: tuple[float, End] | None = None  # since when it has had an error that may be another's fault

    def complaint(self, now: float, silence: float) -> End | None:
        """What is wrong with it."""
        if self.left:
            return None
        if self.lost is not None and self.doubt:
            return self.doubt[1]
        last = f"its last sign was {self.place}" if self.place else "it never gave a sign"
        if self.lost == "":
            return End(f"{self.identity} died; {last}", self.identity.world_rank, EXIT_LOST)
        if self.lost:
            what = f"the connection to {self.identity} broke ({self.lost})"
        elif now - self.heard > silence:
            what = f"{self.identity} has been silent for {now - self.heard:.0f} s"
        else:
            return None
        return End(f"{what}; {last}", self.identity.world_rank, EXIT_LOST, kill=True)


class WorkerWatch:
    """Finds out which data worker died or hangs."""

    def __init__(self, batches: TrainingBatches, silence: float) -> None:
        self._batches, self._silence = batches, silence
        self._workers = batches.workers
        self._moved: list[tuple[Sight, float]] = []  # what each was last seen doing, and since when

    def complaint(self, own: Identity, place: Place, since: float, now: float) -> End | None:
        """What is wrong with a worker of the process `own`, which has been at `place` since then."""
        if self._batches.workers is not self._workers:  # a new `load`
            self._workers, self._moved = self._batches.workers, []
        sights = self._workers.sights()
        for worker, code in self._workers.died():
            how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
            return self._end(own, place, worker, sights[worker], f"died by {how}")
        before = self._moved or [(sight, now) for sight in sights]
        self._moved = [(s, then if s == old else now) for s, (old, then) in zip(sights, before, strict=True)]
        for worker, (sight, moved) in enumerate(self._moved):
            if sight.sample == IDLE:
                if place.phase != READING or self._workers.maker_of(place.step - 1) != worker:
                    continue  # nobody waits for it
                moved = max(moved, since)
            if now - moved > self._silence > 0:
                return self._end(own, place, worker, sight, f"has not moved for {now - moved:.0f} s")
        return None

    def _end(self, own: Identity, place: Place, worker: int, sight: Sight, what: str) -> End:
        workers, shards = self._workers, self._batches.shards
        who = f"data worker {worker} (pid {workers.pid(worker)}) of {own}" if workers.count else f"{own}"
        if sight.sample == IDLE:
            doing = "between two samples"
        else:
            doing = f"reading sample {sight.sample}: {shards.shard(sight.sample)}, {shards.key(sight.sample)!r}"
        return End(f"{who} {what} {place}; it was {doing}", own.world_rank, EXIT_LOST)


class Watch:
    """A context around everything that a process does together with the others.

    Leaving it without an error says goodbye. Leaving it with one tells the others, who end too; but an error that
    may be the consequence of another's end (a broken collective) is held back for a moment, and if that other is
    found it is named instead. So leaving may not return.

    Args:
        silence: seconds without a sign after which a process, or a data worker in the middle of a sample, counts
            as lost; 0: only dead data workers of this process are looked for.

    Attributes:
        batches: set it to have their workers watched.
        log: set it on the first process to have an early end written there.

    Raises:
        OSError: on entering; the first process cannot be reached.
    """

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self.batches: TrainingBatches | None = None
        self.log: Path | None = None
        self._beat = min(BEAT, silence / 6) if silence else BEAT
        self._clock = Clock(2 * self._beat)
        self._place, self._since = Place(), 0.0
        self._identities: list[Identity] = []
        self._peers: dict[int, Peer] = {}
        self._token = ""
        self._door: socket.socket | None = None
        self._workers: WorkerWatch | None = None
        self._selector = selectors.DefaultSelector()
        self._bell, ear = socket.socketpair()
        self._selector.register(ear, selectors.EVENT_READ, lambda: ear.recv(1))
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._last_word: End | bool = False  # how this process leaves: by an error, or True: with a goodbye
        self._in_doubt = False  # that error may be a consequence
        self._doubt: tuple[float, End] | None = None  # since when
        self._verdict: tuple[float, End] | None = None  # the hub's, and when to heed it

    def at(self, step: int, phase: str) -> None:
        """Say where this process is."""
        self._place, self._since = Place(step, phase), self._clock.now

    def __enter__(self) -> Watch:
        together = dist.is_initialized() and dist.get_world_size() > 1 and self.silence > 0
        self._own = own_identity(dist.get_rank() if dist.is_initialized() else 0)
        self._hub = self._own.world_rank == 0
        if together:
            self._meet()
        os.register_at_fork(after_in_child=self._close)  # a data worker must not hold a dead process' lines open
        self._clock.tick()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        code = EXIT_ERROR
        if error is None:
            self._last_word = True
        else:
            reason = f"{type(error).__name__}: {error}".strip(": \n").split("\n")[0]
            self._in_doubt = type(error) is RuntimeError or isinstance(error, CONSEQUENCES)
            how = f"ended by an error {self._place}: {reason}"
            if isinstance(error, SystemExit) and isinstance(error.code, int):  # by a signal, before the first step
                code, how = error.code, f"was told to stop {self._place}"
            self._last_word = End(f"{self._own} {how}", self._own.world_rank, code)
        self._bell.send(b"!")
        self._thread.join()
        self._close()
        if error is not None and self._peers:  # what it leaves next may hang, and the launcher would wait for it
            way_out = threading.Timer(WAY_OUT, os._exit, (code,))
            way_out.daemon = True
            way_out.start()

    # -- meeting

    def _meet(self) -> None:
        """All processes learn who they are; the first opens a door and the others come through it."""
        facts: list[Any] = [None] * dist.get_world_size()
        self._door = _listen(len(facts)) if self._hub else None
        port, token = (self._door.getsockname()[1], secrets.token_hex(16)) if self._door else (0, "")
        dist.all_gather_object(facts, (tuple(self._own), port, token))
        self._identities = [Identity(*identity) for identity, _, _ in facts]
        _, port, self._token = facts[0]
        if self._door:
            self._peers = {identity.world_rank: Peer(identity) for identity in self._identities[1:]}
            self._selector.register(self._door, selectors.EVENT_READ, self._open)
            return
        host = os.environ["MASTER_ADDR"]
        try:
            link = Link(socket.create_connection((host, port), CONNECT))
        except OSError as error:
            raise OSError(
                f"process {self._own.world_rank} does not reach process 0 at {host}, port {port} ({error}); let "
                "the hosts reach each other at every port, or set run.silence = 0 to do without this watch"
            ) from None
        self._peers = {0: Peer(self._identities[0], link)}
        self._attend(link)
        link.send("hello", process=self._own.world_rank, token=self._token)

    def _open(self) -> None:
        """Somebody is at the door, unless gone again."""
        with contextlib.suppress(OSError):
            connection, _ = cast(socket.socket, self._door).accept()
            self._attend(Link(connection))

    def _attend(self, link: Link) -> None:
        self._selector.register(link.socket, selectors.EVENT_READ, lambda: self._read(link))

    # -- from here on all is done by the thread

    def _run(self) -> None:
        """Until this process leaves, or all end."""
        beaten = -self._beat
        while True:
            if self._clock.tick() - beaten >= self._beat:
                beaten = self._clock.now
                self._tell("beat", step=self._place.step, phase=self._place.phase)
            self._hear(self._beat / 2)
            if self._last_word is True:
                self._tell("bye")
                self._farewell()
                return
            end = self._complaint(self._clock.tick())
            if end is not None:
                self._conclude(end)
                return

    def _tell(self, kind: str, **facts: Any) -> None:
        """Say it to all that are connected."""
        for peer in self._peers.values():
            if peer.link:
                peer.link.send(kind, **facts)

    def _hear(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _read(self, link: Link) -> None:
        """Take in what came over a connection."""
        peer = next((peer for peer in self._peers.values() if peer.link is link), None)
        try:
            for message in link.receive():
                if peer is None:
                    peer = self._welcome(link, message)
                peer.heard = self._clock.now
                self._heed(peer, message)
        except (OSError, EOFError, ValueError, RecursionError) as error:
            if peer:
                peer.link, peer.lost = None, str(error)
            self._selector.unregister(link.socket)
            link.socket.close()

    def _welcome(self, link: Link, hello: dict[str, Any]) -> Peer:
        """Whose connection this is, by its first message.

        Raises:
            ValueError: nobody's of this run.
        """
        peer = self._peers.get(hello["process"]) if isinstance(hello.get("process"), int) else None
        token = str(hello.get("token", "")).encode()
        if peer is None or peer.link or not hmac.compare_digest(token, self._token.encode()):
            raise ValueError("not of this run")
        peer.link = link
        if self._door and all(peer.link or peer.lost is not None for peer in self._peers.values()):
            self._selector.unregister(self._door)
            self._door.close()
        return peer

    def _heed(self, peer: Peer, message: dict[str, Any]) -> None:
        now = self._clock.now
        match message["kind"]:
            case "beat":
                peer.place = Place(message["step"], message["phase"])
            case "bye":
                peer.left = True
            case "doubt":
                peer.doubt = now, End(*message["end"])
            case "end":
                peer.left = True
                end = End(*message["end"])
                self._verdict = now + (SAME if end.code == EXIT_ERROR else 0), end

    def _complaint(self, now: float) -> End | None:
        """Why all must end now; this process' own last word itself if that is why."""
        if self.batches is not None:
            self._workers = self._workers or WorkerWatch(self.batches, self.silence)
            end = self._workers.complaint(self._own, self._place, self._since, now)
            if end:
                return end
        own = self._last_word if isinstance(self._last_word, End) else None
        if own and not self._in_doubt:
            return own
        if self._verdict and now >= self._verdict[0]:
            end = self._verdict[1]
            return own if own and end.process == self._own.world_rank else end
        for peer in self._peers.values():
            end = peer.complaint(now, self.silence)
            if end:
                return end
        if own and not self._doubt:
            self._doubt = now, own
            self._tell("doubt", end=own)
        doubts = [d for d in (self._doubt, *(peer.doubt for peer in self._peers.values())) if d]
        if not doubts:
            return None
        since, end = min(doubts)
        patience = DOUBT if self._peers else SAME
        if not self._hub:
            patience += FAREWELL  # the hub sees more, and says what it finds
        return end if now - since >= patience else None

    def _conclude(self, end: End) -> None:
        """Pass it on; then end this process, unless it is about to end by its own error."""
        told = self._hub or end.process == self._own.world_rank
        if told:
            self._tell("end", end=end)
        if end is self._last_word:
            self._farewell()
            return
        if end.kill and end.process != self._own.world_rank:
            self._identities[end.process].kill()
        say = threading.Thread(target=self._say, args=(end,), daemon=True)
        say.start()
        say.join(SAY)
        if told:
            self._farewell()
        os._exit(end.code)

    def _say(self, end: End) -> None:
        """On stderr and in the log, past the buffers that a hanging thread of this process may have locked."""
        advice = "" if end.code == EXIT_ERROR else "; go on with --resume"
        ends = f"process {self._own.world_rank} ends with code {end.code} ({self._place}){advice}"
        with contextlib.suppress(OSError):
            os.write(2, f"\ntrain.py: {end.message}; {ends}\n".encode())
        if self.log:
            kind = {EXIT_LOST: "lost", EXIT_ERROR: "error"}.get(end.code, "stopped")
            facts = {"event": kind, "time": round(time.time(), 3), "process": end.process, "message": end.message}
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, json.dumps(facts, ensure_ascii=False).encode() + b"\n")

    def _farewell(self) -> None:
        """Until the others have heard the last words, or should have."""
        end = time.monotonic() + FAREWELL
        for peer in self._peers.values():
            if peer.link:
                with contextlib.suppress(OSError):
                    peer.link.socket.shutdown(socket.SHUT_WR)
        while any(peer.link for peer in self._peers.values()) and time.monotonic() < end:
            self._hear(FAREWELL / 20)

    def _close(self) -> None:
        """Let go of all lines."""
        lines = self._selector.get_map()
        if lines is not None:
            for key in list(lines.values()):
                cast(socket.socket, key.fileobj).close()
            self._selector.close()
            self._bell.close()


def _listen(backlog: int) -> socket.socket:
    """A server on a free port, of both families where the host has them."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    except (OSError, ValueError):
        return socket.create_server(("", 0), backlog=backlog)
