"""The shards of a run on every host's disk: remote ones are fetched, and all processes wait together."""

from __future__ import annotations

import socket
from pathlib import Path

import torch.distributed as dist

from bioclip_hc.data.cache import AT_ONCE, Cache, Downloads, say
from bioclip_hc.data.sources import name_shards, on_disk, remote
from bioclip_hc.data.urls import split_specs

from agreement import on_all
from config import Data

TURN = 5.0  # seconds after which processes hear from each other: far less than a collective may take
FAILED = "the shards cannot be fetched"


def bring(data: Data, allow_pipe: bool = False) -> list[Path]:
    """Paths of the shards that `data.train` names; all processes call it.

    The first process of each host fetches them and says how far it is. The others come upon its locks one after the
    other, and then on what it brought. Hosts that share a cache share the work in the same way.

    Args:
        allow_pipe: whether "pipe:COMMAND" stands for what the command writes.

    Raises:
        FileNotFoundError, ValueError: see `name_shards`.
        FailedTogether: on all processes, if a shard cannot be had on any.
    """
    named, cache = name_shards(split_specs(data.train), allow_pipe=allow_pipe), Cache(data.cache or None)
    addresses, host = remote(named), socket.gethostname()
    facts = on_all(FAILED, lambda: (host, bool(addresses)))  # a process may have paths of its own
    if any(there_are for _, there_are in facts):
        rank = dist.get_rank() if dist.is_initialized() else 0
        first = all(other != host for other, _ in facts[:rank])
        at_once, tell = (AT_ONCE, say) if first else (1, None)
        with Downloads(addresses, cache, at_once=at_once, say=tell) as downloads:
            while not all(on_all(FAILED, lambda: downloads.wait(TURN))):
                pass
    return on_disk(named, cache)
