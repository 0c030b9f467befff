"""Options that several commands of bioclip-hc take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bioclip_hc.data.prompts import Prompts


def model_options(p: argparse.ArgumentParser) -> None:
    """Which model, which taxa, where."""
    p.add_argument(
        "--model", required=True, help="model folder, owner/repo on the Hugging Face hub, or a key of list-models"
    )
    p.add_argument("--taxonomy", help="table of the taxa to choose among; by default the model's own")
    p.add_argument("--device", default=None, help="cpu, cuda, ...; by default cuda where there is one")


def device(name: str | None) -> str:
    """The device that was named; by default cuda where there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # each kind of device has its own
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def add_prompt_options(p: argparse.ArgumentParser) -> None:
    """In which words the model is asked; `prompts_of` reads them."""
    p.add_argument(
        "--prompts",
        metavar="PRESET|FILE",
        help="words for a taxon: bioclip-hc, bioclip, names, openai-80, or a .toml or .json file with templates, "
        "form and separator; by default those of the published system, else those of training",
    )
    p.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a text with {} for the taxon, in place of the templates of --prompts; several are averaged",
    )


def prompts_of(options: argparse.Namespace) -> Prompts | None:
    """What --prompts and --template say; None: neither was given.

    Raises:
        ValueError, OSError: as `data.prompts.read_prompts`.
    """
    from dataclasses import replace

    from bioclip_hc.data.prompts import Prompts, read_prompts

    if options.prompts is None and options.template is None:
        return None
    prompts = Prompts() if options.prompts is None else read_prompts(options.prompts)
    return prompts if options.template is None else replace(prompts, templates=tuple(options.template))


def output_form(options: argparse.Namespace, forms: Sequence[str], default: str) -> str:
    """The format that --format names, or else the ending of --output, or else the default.

    Raises:
        ValueError: a format that needs --output, which was not given.
    """
    ending = (options.output or "").rpartition(".")[2].lower()
    form = options.format or (ending if ending in forms else default)
    if form in ("npz", "parquet") and not options.output:
        raise ValueError(f"--format {form} needs --output FILE")
    return form
