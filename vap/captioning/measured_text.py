"""Sentences of the measured describer: attributes in, plain English out, no diagnosis."""

from collections.abc import Collection, Mapping

from vap.captioning.measured_tools import Lesion

ATTRIBUTES = ("shape", "color", "size", "texture")
SHAPE = {
    "meniscus": "meniscus-shaped",
    "band": "band-like",
    "diffuse": "diffuse",
}
SIZE = {"small": "small", "medium": "medium-sized", "large": "large"}
TEXTURE = {
    "dermoscopy": {
        "smooth": "a smooth, even texture",
        "network": "a network-like texture",
        "dotted": "a dotted texture of dark globules",
        "scaly": "a scaly texture with whitish flakes",
    },
    "chest_xray": {
        "homogeneous": "homogeneous",
        "mottled": "mottled",
        "streaky": "streaky",
    },
    "colonoscopy": {
        "smooth": "a smooth surface",
        "granular": "a granular, dotted surface",
        "ridged": "a ridged, grooved surface",
    },
}
HAIR = {"none": "without hair", "sparse": "with sparse hair", "dense": "crossed by dense hair"}

GENERAL = {
    "dermoscopy": (
        "Skin lesions vary in shape from round and oval with a regular outline to irregular with "
        "notched borders, and in color from light and dark brown to black, red, pink and "
        "blue-grey. They may fill a small, medium or large part of the image, and their texture "
        "may be smooth, network-like, dotted or scaly. The surrounding skin may be pale, pink, "
        "tan or brown, with or without hair, sometimes inside dark corners."
    ),
    "chest_xray": (
        "Findings on chest radiographs may be round, patchy, band-like, meniscus-shaped at the "
        "base, or diffuse, and range from faint grey or dense white opacities to abnormally dark, "
        "lucent areas. They may take up a small or large part of one lung or of both, in the "
        "upper, middle or lower zones, with a homogeneous, mottled or streaky texture. The heart "
        "may be normal or enlarged, and the lungs of low volume, normal or hyperinflated."
    ),
    "colonoscopy": (
        "Polyps seen at colonoscopy may be round, oval or lobulated, and pale, pink, red or "
        "yellowish in color. They take up a small, medium or large part of the view, with a "
        "smooth, granular or ridged surface. The surrounding mucosa may be salmon, orange or red, "
        "with faint or prominent folds, reflections of light and a dark lumen."
    ),
}


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def share(area: float) -> str:
    """An area fraction, 0 to 1, as approximate words."""
    percent = 100 * area
    if percent < 1.5:
        return "about 1%"
    rounded = round(percent) if percent < 8 else 5 * round(percent / 5)
    return f"about {rounded}%"


def _upper(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


# ── step 1: what is observed ────────────────────────────────────────────────────────────────────


def observation(modality: str, found: Mapping[str, str], lesion: Lesion | None) -> str:
    """One or two sentences on what is seen, without conclusions (t1)."""
    if lesion is None:
        return f"No distinct lesion is seen in this image. {_upper(_background(modality, found))}."
    border = "clearly set off from" if lesion.contrast > 22 else "blending into"
    shape = SHAPE.get(found["shape"], found["shape"])
    if modality == "dermoscopy":
        first = (
            f"There is {article(shape)} {found['color']} area at the {lesion.position} of the "
            f"image, {border} the skin around it, with {TEXTURE[modality][found['texture']]}."
        )
    elif modality == "chest_xray":
        kind = "lucent area" if found["color"] == "dark" else "opacity"
        first = (
            f"There is {article(shape)} {found['color']} {kind} of {found['texture']} texture in "
            f"{_region(found)}, covering {share(lesion.area)} of the image."
        )
    else:
        first = (
            f"There is {article(shape)} {found['color']} elevation at the {lesion.position} of the "
            f"view, {border} the wall around it, with {TEXTURE[modality][found['texture']]}."
        )
    return f"{first} {_upper(_background(modality, found))}."


# ── step 3: the caption ─────────────────────────────────────────────────────────────────────────


def summary(
    modality: str, found: Mapping[str, str], lesion: Lesion | None, about: Collection[str] = ATTRIBUTES
) -> str:
    """One sentence with shape, color, size, texture (those of `about`) and background (t_mix)."""
    if lesion is None:
        return f"No distinct lesion is seen; {_background(modality, found)}."
    words = {
        "size": SIZE[found["size"]],
        "shape": SHAPE.get(found["shape"], found["shape"]),
        "color": found["color"],
        "texture": found["texture"],
    }
    kept = [word for name, word in words.items() if name in about]
    size = f", {share(lesion.area)} of the image" if "size" in about else ""
    if modality == "dermoscopy":
        hair = HAIR[found["hair"]]
        corners = " and dark corners" if found["frame"] == "dark corners" else ""
        what, where = "lesion", f"on {found['skin']} skin {hair}{corners}"
    elif modality == "chest_xray":
        kind = "lucency" if found["color"] == "dark" else "opacity"
        what = kind if "color" in about else "abnormal area"
        where = f"in {_region(found)}, with {_thorax(found)}"
    else:
        what, where = "polyp", f"on {_wall(found)}"
    return _upper(f"{article(' '.join([*kept, what]))}{size}, {where}.")


# ── background ──────────────────────────────────────────────────────────────────────────────────


def _background(modality: str, found: Mapping[str, str]) -> str:
    if not found:
        return "the image is uniform or too dark to show any structure"
    if modality == "dermoscopy":
        if "skin" not in found:
            return "the view is almost entirely dark"
        frame = ", inside dark corners" if found["frame"] == "dark corners" else ""
        return f"the surrounding skin is {found['skin']}, {HAIR[found['hair']]}{frame}"
    if modality == "chest_xray":
        return f"the radiograph shows {_thorax(found)}"
    if "mucosa" not in found:
        return "the view is almost entirely dark"
    return f"the surroundings show {_wall(found)}"


def _region(found: Mapping[str, str]) -> str:
    if found["side"] == "both":
        return f"both {found['zone']} zones"
    return f"the {found['side']} {found['zone']} zone"


def _thorax(found: Mapping[str, str]) -> str:
    heart = article(f"{found['heart']} heart")
    lungs = {
        "low volume": "low-volume lungs",
        "normal": "normal lungs",
        "hyperinflated": "hyperinflated lungs",
    }[found["lungs"]]
    dark = {"normal": ""}.get(found["exposure"], f" and {found['exposure']} exposure")
    return f"{heart}{', ' if dark else ' and '}{lungs}{dark}"


def _wall(found: Mapping[str, str]) -> str:
    lumen = "a dark lumen" if found["lumen"] == "visible" else "no lumen"
    return (
        f"{found['mucosa']} mucosa with {found['folds']} folds, {lumen} and {found['highlights']} reflections"
    )
