"""Options that several commands of bioclip-hc take."""

from __future__ import annotations

import argparse


def model_options(p: argparse.ArgumentParser) -> None:
    """Which model, which taxa, where."""
    p.add_argument("--model", required=True, help="model folder, or owner/repo on the Hugging Face hub")
    p.add_argument("--taxonomy", help="table of the taxa to choose among; by default the model's own")
    p.add_argument("--device", default=None, help="cpu, cuda, ...; by default cuda where there is one")


def device(name: str | None) -> str:
    """The device that was named; by default cuda where there is one."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")
