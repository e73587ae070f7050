"""The vocabulary of visual attributes: what phantoms are drawn from and the describer measures.

The first four attributes of every modality are those of the paper (§2.2: shape, color, size,
texture); the others describe the background. Sides of a chest radiograph are the patient's, so
"right" is at the left of the image.
"""

from typing import Final, Literal

Modality = Literal["dermoscopy", "chest_xray", "colonoscopy"]

MODALITIES: Final[tuple[Modality, ...]] = ("dermoscopy", "chest_xray", "colonoscopy")

VOCABULARY: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "dermoscopy": {
        "shape": ("round", "oval", "irregular"),
        "color": ("light brown", "dark brown", "black", "red", "pink", "blue-grey"),
        "size": ("small", "medium", "large"),
        "texture": ("smooth", "network", "dotted", "scaly"),
        "skin": ("pale", "pink", "tan", "brown"),
        "hair": ("none", "sparse", "dense"),
        "frame": ("full", "dark corners"),
    },
    "chest_xray": {
        "shape": ("round", "patchy", "band", "meniscus", "diffuse"),
        "color": ("dark", "grey", "white"),
        "size": ("small", "medium", "large"),
        "texture": ("homogeneous", "mottled", "streaky"),
        "side": ("left", "right", "both"),
        "zone": ("upper", "middle", "lower"),
        "heart": ("normal", "enlarged"),
        "lungs": ("low volume", "normal", "hyperinflated"),
        "exposure": ("dark", "normal", "bright"),
    },
    "colonoscopy": {
        "shape": ("round", "oval", "lobulated"),
        "color": ("pale", "pink", "red", "yellow"),
        "size": ("small", "medium", "large"),
        "texture": ("smooth", "granular", "ridged"),
        "mucosa": ("salmon", "orange", "red"),
        "folds": ("faint", "prominent"),
        "lumen": ("hidden", "visible"),
        "highlights": ("few", "many"),
    },
}

# Area of the lesion as a fraction of the image: small below the first, large from the second.
SIZE_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "dermoscopy": (0.10, 0.24),
    "chest_xray": (0.015, 0.030),
    "colonoscopy": (0.075, 0.18),
}


def size_name(modality: str, area_fraction: float) -> str:
    """Name a lesion's size from its area as a fraction of the image, 0 to 1."""
    low, high = SIZE_LIMITS[modality]
    return "small" if area_fraction < low else "medium" if area_fraction < high else "large"
