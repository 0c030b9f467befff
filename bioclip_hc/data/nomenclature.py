"""Names for the synthetic tree of life: Latin by the customs of the codes, English as field guides make them.

# S species, R ranks

Higher taxa are named after a genus they contain (Turdus, Turdidae), endings tell rank and kingdom, epithets repeat
across families, and one genus name serves an animal and a plant.
"""

from __future__ import annotations

import numpy as np

from bioclip_hc.data.body_plans import BODY_PLANS, PLANS_OF_KINGDOM
from bioclip_hc.data.creatures import FAMILY, GENUS, KINGDOM, NAMES, PHYLUM
from bioclip_hc.taxonomy import RANKS

KINGDOMS = tuple(PLANS_OF_KINGDOM)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words("b c d f g l m n p r s t v br cr dr fl gl pl pr st tr ch ph th sc")
VOWELS = _words("a e i o u a e o ae y")
MIDDLES = _words("l r n m s t d c p v lt nd rc mb ll nn st ph x")
GENUS_ENDINGS = {
    "Animalia": ("us", "a", "ops", "ella", "is"),
    "Plantae": ("ia", "a", "um", "ella", "is"),
    "Fungi": ("us", "a", "ium", "ella", "omyces"),
}
RANK_ENDINGS = {  # how the zoological, botanical and mycological codes end these ranks
    "Animalia": {"phylum": "ozoa", "class": "oidea", "order": "iformes", "family": "idae"},
    "Plantae": {"phylum": "ophyta", "class": "opsida", "order": "ales", "family": "aceae"},
    "Fungi": {"phylum": "omycota", "class": "omycetes", "order": "ales", "family": "aceae"},
}
EPITHETS = _words(  # "-us" agrees with the genus: -us, -a, -um; the rest is invariable or -is, -e
    "montanus vulgaris pallidus sylvaticus maculatus minor viridis rubrus fulvus littoralis palustris "
    "striatus elegans communis australis borealis orientalis occidentalis nanus giganteus niger albidus "
    "campestris alpinus punctatus ornatus robustus gracilis fasciatus arenarius muelleri darwini wallacei "
    "linnaei mirabilis bicolor tricolor velox tardus solitarius gregarius nocturnus aureus cinereus lividus "
    "ferrugineus hirsutus glaber cornutus barbatus caudatus dentatus lacustris insularis desertorum hortensis "
    "intermedius dubius neglectus insignis venustus modestus tristis hilaris"
)
UNUSUAL_EPITHETS = ("×hybridus", "güntheri", "peñai")


def name_taxa(nodes: np.ndarray, rng: np.random.Generator) -> list[list[str]]:
    """Per rank the names of its taxa, for species that stand at `nodes` (S, R); sisters must be neighbours."""
    _, first = np.unique(nodes[:, GENUS], return_index=True)
    kingdoms = nodes[first, KINGDOM]  # of the genera
    stems = _stems(len(kingdoms), rng)
    names = [list(KINGDOMS)]
    for rank in range(PHYLUM, GENUS):
        _, first = np.unique(nodes[:, rank], return_index=True)
        genera = nodes[first, GENUS]
        names.append([stems[g] + RANK_ENDINGS[KINGDOMS[kingdoms[g]]][RANKS[rank]] for g in genera])
    genus_names = [
        stem + str(rng.choice(GENUS_ENDINGS[KINGDOMS[k]])) for stem, k in zip(stems, kingdoms, strict=True)
    ]
    animal, plant = (int(rng.choice(np.flatnonzero(kingdoms == k))) for k in (0, 1))
    genus_names[plant] = genus_names[animal]  # as Oenanthe is a bird and a herb
    return [*names, genus_names, _epithets(nodes, genus_names, rng)]


def _stems(count: int, rng: np.random.Generator) -> list[str]:
    """Different pronounceable stems, capitalised, that end in a consonant."""
    stems: dict[str, None] = {}
    while len(stems) < count:
        stem = str(rng.choice(ONSETS))
        for _ in range(int(rng.integers(1, 3))):
            stem += str(rng.choice(VOWELS)) + str(rng.choice(MIDDLES))
        if len(stem) >= 4:
            stems.setdefault(stem.capitalize())
    return list(stems)


def _epithets(nodes: np.ndarray, genus_names: list[str], rng: np.random.Generator) -> list[str]:
    """One epithet per species; they repeat across families, never within one (its genera may go unnamed)."""
    epithets: list[str] = []
    for size in np.bincount(nodes[:, FAMILY]):
        pool = EPITHETS if size <= len(EPITHETS) else [*EPITHETS, *(f"neo{e}" for e in EPITHETS)]
        epithets += rng.choice(pool, size, replace=False).tolist()
    for species, unusual in zip(rng.choice(len(nodes), 3, replace=False), UNUSUAL_EPITHETS, strict=True):
        epithets[species] = unusual
    return [_agree(epithet, genus_names[g]) for epithet, g in zip(epithets, nodes[:, GENUS], strict=True)]


def _agree(epithet: str, genus: str) -> str:
    """Loose Latin agreement of an adjective in -us or -is with the gender that the genus ending suggests."""
    feminine, neuter = genus.endswith("a"), genus.endswith("um")
    if epithet.endswith("us") and (feminine or neuter):
        return epithet[:-2] + ("a" if feminine else "um")
    if epithet.endswith("is") and neuter:
        return epithet[:-2] + "e"
    return epithet


COLOURS = _words("Scarlet Amber Golden Lime Green Jade Teal Azure Cobalt Violet Magenta Rosy")
PATTERN_WORDS = ("Plain", "Banded", "Striped", "Spotted", "Ringed", "Mottled")
PLACES = _words(
    "Marsh Mountain River Meadow Island Coastal Northern Southern Desert Garden Hollow Cliff Lake Valley "
    "Moor Dune Harbour Orchard Winter Morning"
)
FIRST_PARTS = _words(
    "tinker bramble puddle wobble thistle pepper noodle button mumble clover pickle velvet copper whistle "
    "ginger marble fiddle saffron nettle bubble cinder feather willow hazel tumble"
)
SECOND_PARTS = {
    "beast": ("snout", "paw", "trotter"),
    "fish": ("fin", "gill", "minnow"),
    "insect": ("wing", "beetle", "bug"),
    "star": ("star", "ray", "arm"),
    "jelly": ("bell", "veil", "drifter"),
    "snail": ("shell", "snail", "creeper"),
    "flower": ("bloom", "wort", "blossom"),
    "frond": ("fern", "frond", "feather"),
    "conifer": ("pine", "fir", "spruce"),
    "cactus": ("thorn", "cactus", "prickle"),
    "mushroom": ("cap", "bonnet", "stool"),
    "coral": ("coral", "antler", "finger"),
    "puffball": ("puff", "ball", "purse"),
}


def common_names(genomes: np.ndarray, nodes: np.ndarray, rng: np.random.Generator) -> list[str]:
    """English names as field guides make them: the family's noun, a colour and a pattern, a place where needed."""
    trait = {name: genomes[:, k] for k, name in enumerate(NAMES)}
    families = nodes[:, FAMILY]
    first = rng.permutation(FIRST_PARTS * (families.max() // len(FIRST_PARTS) + 1))
    names: list[str] = []
    for s, family in enumerate(families):
        seconds = SECOND_PARTS[BODY_PLANS[int(trait["plan"][s])].name]
        colour = COLOURS[int(trait["hue"][s] * len(COLOURS)) % len(COLOURS)]
        pattern = PATTERN_WORDS[int(trait["pattern"][s])]
        name = f"{pattern} {colour} {str(first[family]).capitalize()}{seconds[family % len(seconds)]}"
        while name in names:
            name = f"{rng.choice(PLACES)} {name}"
        names.append(name)
    return names
