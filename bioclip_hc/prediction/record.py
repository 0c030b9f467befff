"""What a prediction was made with, for whoever asks later."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bioclip_hc import __version__
from bioclip_hc.evaluation.systems import System
from bioclip_hc.taxonomy import Taxonomy


def write_record(
    path: str, system: System, taxonomy: Taxonomy | None, options: Mapping[str, Any], counts: Mapping[str, int]
) -> None:
    """Command, versions, model with its fingerprints and words, taxa, options and counts.

    A .json file is replaced; to any other one a paragraph of lines is added.

    Raises:
        OSError: it cannot be written.
    """
    said = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "bioclip_hc": __version__,
        "system": system.to_dict(),
        "taxa": {"count": taxonomy.size, "sha256": taxonomy.sha256} if taxonomy else None,
        "options": options,
        **counts,
    }
    if path.endswith(".json"):
        Path(path).write_text(json.dumps(said, indent=2, default=str) + "\n", encoding="utf-8")
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in said.items()) + "\n")
