"""What a model was made from, and the card that says so in every exported folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bioclip_hc
from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.model import HierarchicalCLIP

from config import Config

CARD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [biology, taxonomy, clip, {geometry}]
---

# {architecture}, {geometry}, {objective}

An image and text model of {taxa} taxa. Texts are taxonomic names, written as {text!r}.

Load it with `bioclip_hc.load(FOLDER)` or, with stock open_clip, `create_model_and_transforms("local-dir:FOLDER")`.
{space}

## Training

{steps} steps; {samples_used} samples were used and {samples_quarantined} quarantined, over all epochs.
The taxonomy's SHA-256 is `{taxonomy}`. Configuration, versions, and a fingerprint of every shard:

```json
{facts}
```

## Limits

- Photographs of living things are unevenly spread over species, places and seasons. The model names common species
  better than rare ones, and may prefer a common relative over a rare species that it should have named.
- A probability compares the taxa it was asked about. It says nothing of taxa left out, and is not calibrated.
- A prediction is no evidence that a protected or a dangerous species is, or is not, there. Do not publish places of
  rare species from it, nor decide on eating, handling or removing an organism.
"""

SPACE = {
    "lorentz": "Stock features are tangent vectors at the origin of hyperbolic space of curvature -{curv:g}; "
    "`exp_map0` and the Lorentz distance recover the model. Their cosine ignores the radius, which is part of what "
    "was learned.",
    "euclidean": "Features are compared by their cosine.",
}


def model_card(model: HierarchicalCLIP) -> str:
    """README.md of a trained model, from the metadata that training put into it."""
    facts = model.metadata
    config = facts["config"]
    return CARD.format(
        geometry=model.geometry,
        architecture=config["model"]["architecture"],
        objective="level-restricted" if config["loss"]["name"] == "level" else "mixed ranks",
        taxa=facts["taxa"],
        text=facts["text"]["template"],
        space=SPACE[model.geometry].format(curv=model.manifold.curv.item()),
        samples_used=facts["samples_used"],
        samples_quarantined=facts["samples_quarantined"],
        steps=facts["steps"],
        taxonomy=facts["taxonomy_sha256"],
        facts=json.dumps({key: facts[key] for key in ("config", "versions", "shards")}, indent=1),
    )


def provenance(
    config: Config, batches: TrainingBatches, inputs: dict[str, Any], used: int, quarantined: int, step: int
) -> dict[str, Any]:
    """What a model was made from; `inputs` as `folder.inputs` gives them."""
    return {
        "ranks": list(config.data.ranks),
        "config": without_paths(config),
        "steps": step,
        "samples_used": used,
        "samples_quarantined": quarantined,
        "samples_unusable": len(batches.shards.bad),
        "shards": inputs["shards"],
        "taxa": batches.taxonomy.size,
        "taxonomy_sha256": inputs["taxonomy"],
        "versions": versions(),
    }


def without_paths(config: Config) -> dict[str, Any]:
    """The configuration without the folders of the machine it ran on; files keep their names."""
    table = config.to_dict()
    for key in ("train", "taxonomy", "synonyms", "cache"):
        del table["data"][key]
    for key in ("architecture", "pretrained"):
        table["model"][key] = Path(table["model"][key]).name
    del table["run"]["output"]
    return table


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    import deepspeed
    import open_clip

    modules = {
        "torch": torch,
        "deepspeed": deepspeed,
        "open_clip": open_clip,
        "numpy": np,
        "bioclip_hc": bioclip_hc,
    }
    return {"python": sys.version.split()[0], **{name: str(module.__version__) for name, module in modules.items()}}
