"""In which words a model is asked for taxa: one sentence, or several whose embeddings are averaged.

Template, form and separator change a result by many points with the same weights, so they are explicit and are
saved with every result. What a model was *trained* with is a single `TextForm`; what it is *asked* with is a
`Prompts`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bioclip_hc.data.text import TextForm


@dataclass(frozen=True)
class Prompts:
    """Sentences in which every taxon is asked for.

    Attributes:
        templates: texts with one {} for the taxon; several are an ensemble.
        form, separator: as in `TextForm`, the same for all of them.
    """

    templates: tuple[str, ...] = (TextForm.template,)
    form: str = TextForm.form
    separator: str = TextForm.separator

    def __post_init__(self) -> None:
        if isinstance(self.templates, str) or not self.templates:
            raise ValueError(f"templates must be a list of at least one text with {{}}, got {self.templates!r}")
        object.__setattr__(self, "templates", tuple(self.templates))
        self.forms  # noqa: B018  # checks each of them

    @property
    def forms(self) -> tuple[TextForm, ...]:
        """One `TextForm` per template."""
        return tuple(TextForm(template, self.form, self.separator) for template in self.templates)

    @classmethod
    def of(cls, form: TextForm) -> Prompts:
        """The words a model was trained with."""
        return cls((form.template,), form.form, form.separator)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `Prompts(**d)` reads it."""
        return asdict(self) | {"templates": list(self.templates)}

    def __str__(self) -> str:
        """A line for a table: the words with a taxon of three names in them."""
        names = self.separator.join("ABC") if self.form.startswith("path") else self.form.replace("_", " with ")
        first = self.templates[0].replace("{}", names)
        more = f" and {len(self.templates) - 1} more templates" if len(self.templates) > 1 else ""
        return f"{first!r}{more}"


def read_prompts(name: str | Path) -> Prompts:
    """The preset of that name, or what a .toml or .json file says (templates, form, separator).

    Raises:
        ValueError: neither; a file with an unknown key, or of no use.
        OSError: the file cannot be read.
    """
    if str(name) in PRESETS:
        return PRESETS[str(name)]()
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"prompts {str(name)!r} are neither one of {', '.join(PRESETS)} nor a .toml or .json file")
    text = path.read_text(encoding="utf-8")
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return Prompts(**content)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} must hold templates, a list of texts with one {{}}, and may hold form and separator: {error}"
        ) from None


def _openai() -> Prompts:
    """The 80 templates that OpenAI evaluated CLIP with on ImageNet, from open_clip's list."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return Prompts(tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), separator=", ")


PRESETS: dict[str, Callable[[], Prompts]] = {
    "bioclip-hc": lambda: Prompts(("an image of {}",)),  # arXiv 2606.21838, the form of training
    "bioclip": lambda: Prompts(("a photo of {}.",)),  # arXiv 2311.18803
    "names": lambda: Prompts(("{}",)),  # arXiv 2506.21476 trains on bare prefixes
    "openai-80": _openai,
}
