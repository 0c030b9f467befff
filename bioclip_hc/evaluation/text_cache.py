"""Text embeddings of a taxonomy, computed once and kept on disk.

# T taxa, D embed

A file for each pair of system and taxonomy, named by the SHA-256 of all that its numbers depend on. A damaged file
is computed anew; a folder that cannot be read or written costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bioclip_hc.evaluation.systems import System
from bioclip_hc.taxonomy import Taxonomy

FORMAT_VERSION = "1"


def text_cache_folder() -> Path:
    """$XDG_CACHE_HOME/bioclip_hc/texts; without that variable, ~/.cache/bioclip_hc/texts."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bioclip_hc" / "texts"


def taxa_texts(
    system: System,
    taxonomy: Taxonomy,
    *,
    cache: bool | str | Path = True,
    tell: Callable[[str], object] = warnings.warn,
) -> Tensor:
    """`system.embed_taxa(taxonomy)`, (T, D) float32 on the CPU, from the cache where it has them.

    Several processes may use a folder at once.

    Args:
        cache: False neither reads nor writes; True means `text_cache_folder()`; or a folder.
        tell: called at most once, with what kept the cache from being used.
    """
    if cache is False or not taxonomy.size:
        return system.embed_taxa(taxonomy)
    trouble = ""
    try:
        folder = text_cache_folder() if cache is True else Path(cache)
        file = folder / f"{texts_key(system, taxonomy)}.safetensors"
        if file.exists():
            return _read(file, (taxonomy.size, system.model.embed_dim))
    except _DamagedError as error:
        trouble = f"{error}; the texts are embedded anew"
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError where there is none
        tell(f"text embeddings are not cached: {error}")
        return system.embed_taxa(taxonomy)
    text = system.embed_taxa(taxonomy)
    try:
        _write(file, text)
    except OSError as error:
        trouble = f"text embeddings are not cached: {error}"
    if trouble:
        tell(trouble)
    return text


def texts_key(system: System, taxonomy: Taxonomy) -> str:
    """SHA-256 (hex) of all that the text embeddings depend on.

    These are the system's text side with its tokenizer and words (`System.text_fingerprint`), the taxa in their own
    letters with common names, and the kind of device.
    """
    device = next(system.model.parameters()).device.type
    digest = hashlib.sha256(f"{FORMAT_VERSION} {device} {system.text_fingerprint}\n".encode())
    digest.update(taxonomy.rank.tobytes() + taxonomy.parent.tobytes())
    names = [taxonomy.name(t) for t in range(taxonomy.size)]
    digest.update("\0".join([*names, *taxonomy.extra.get("common_name", ())]).encode())
    return digest.hexdigest()


class _DamagedError(ValueError):
    """A file of the cache that does not hold what was written."""


def _read(file: Path, shape: tuple[int, int]) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            text = opened.get_tensor("text")
    except (SafetensorError, ValueError) as error:
        raise _DamagedError(f"{file} is damaged ({error})") from None
    if text.dtype != torch.float32 or tuple(text.shape) != shape or said.get("sha256") != _sha256(text):
        raise _DamagedError(f"{file} is damaged (not the numbers that were written)")
    return text


def _write(file: Path, text: Tensor) -> None:
    """Beside it, then renamed: a reader meets a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)
    os.close(handle)
    try:
        save_file({"text": text.contiguous()}, temporary, {"sha256": _sha256(text)})
        os.replace(temporary, file)
    except SafetensorError as error:  # a full disk, as safetensors tells it
        raise OSError(f"{file} cannot be written: {error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sha256(text: Tensor) -> str:
    return hashlib.sha256(text.contiguous().numpy().tobytes()).hexdigest()
