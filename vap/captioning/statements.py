"""What a description says: attribute values, a diagnosis, a refusal. By words alone, for any describer.

The words are those of vap.datasets.attributes.VOCABULARY and their usual synonyms. That is enough for short
descriptions such as question 3 asks for; of long free text it is an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

SIZES = {"small": r"small|tiny", "medium": r"medium(?:-sized)?|moderate", "large": r"large|big"}

# What describes the background is taken out before the lesion's own attributes are looked for.
BACKGROUND = {
    "dermoscopy": r"(?:[\w-]+,? (?:and |or )?)?[\w-]+ skin\b|skin (?:is|appears|looks) [\w-]+|dark corners?",
    "chest_xray": r"\bwith an? [\w-]+ heart.*$|[\w-]+ (?:heart|lungs|exposure)|heart (?:is|appears) [\w-]+",
    "colonoscopy": r"\bon [\w-]+ mucosa.*$|[\w-]+ mucosa|dark lumen|[\w-]+ (?:folds|reflections)",
}

# attribute: value: what states it; the first four are of the lesion, the others of the background
PATTERNS: dict[str, dict[str, dict[str, str]]] = {
    "dermoscopy": {
        "shape": {
            "round": r"round|circular",
            "oval": r"oval|elliptical",
            "irregular": r"irregular|asymmetric(?:al)?|notched",
        },
        "color": {
            "light brown": r"light[- ]brown|tan",
            "dark brown": r"dark[- ]brown",
            "black": r"black",
            "red": r"red|reddish",
            "pink": r"pink|pinkish",
            "blue-grey": r"blue-gr[ae]y|bluish|blue|gr[ae]y",
        },
        "size": SIZES,
        "texture": {
            "smooth": r"smooth|even|homogeneous",
            "network": r"network(?:-like)?|reticular|reticulated",
            "dotted": r"dotted|dots|globules|globular",
            "scaly": r"scaly|scales?|flakes|flaky|crusted",
        },
        "skin": {
            name: rf"{name}(?:[ -]\w+)? skin|skin (?:is|appears) {name}" for name in ("pale", "pink", "tan")
        }
        | {"brown": r"brown skin|skin (?:is|appears) brown"},
        "hair": {
            "none": r"without (?:any )?hairs?|no (?:visible )?hairs?|hairless",
            "sparse": r"(?:sparse|few|some|a few) hairs?",
            "dense": r"(?:dense|many|thick) hairs?",
        },
        "frame": {"dark corners": r"dark corners?|vignett(?:e|ing)"},
    },
    "chest_xray": {
        "shape": {
            "round": r"round|rounded|nodular",
            "patchy": r"patchy",
            "band": r"band(?:-like)?|linear",
            "meniscus": r"meniscus(?:-shaped)?",
            "diffuse": r"diffuse",
        },
        "color": {"dark": r"lucency|lucent|dark", "grey": r"gr[ae]y|faint", "white": r"white|dense|bright"},
        "size": SIZES,
        "texture": {
            "homogeneous": r"homogeneous|uniform",
            "mottled": r"mottled|granular",
            "streaky": r"streaky|streaks|reticular",
        },
        "side": {"both": r"both|bilateral", "left": r"left", "right": r"right"},
        "zone": {"upper": r"upper|apical", "middle": r"middle|mid", "lower": r"lower|basal"},
        "heart": {
            "normal": r"normal(?:-sized)? heart|heart (?:size )?(?:is|appears) normal",
            "enlarged": r"(?:enlarged|large) heart|heart (?:is|appears) enlarged",
        },
        "lungs": {
            "low volume": r"low[- ]volume",
            "normal": r"normal lungs|lungs (?:are|appear) normal",
            "hyperinflated": r"hyperinflated",
        },
        "exposure": {"dark": r"dark exposure|underexposed", "bright": r"bright exposure|overexposed"},
    },
    "colonoscopy": {
        "shape": {
            "round": r"round|rounded|circular",
            "oval": r"oval|elliptical",
            "lobulated": r"lobulated|irregular",
        },
        "color": {
            "pale": r"pale|whitish",
            "pink": r"pink|pinkish",
            "red": r"red|reddish",
            "yellow": r"yellow|yellowish",
        },
        "size": SIZES,
        "texture": {
            "smooth": r"smooth|even",
            "granular": r"granular|dotted",
            "ridged": r"ridged|grooved|gyrate",
        },
        "mucosa": {
            name: rf"{name} mucosa|mucosa (?:is|appears) {name}" for name in ("salmon", "orange", "red")
        },
        "folds": {"faint": r"faint folds", "prominent": r"prominent folds"},
        "lumen": {
            "visible": r"dark lumen|lumen is visible",
            "hidden": r"no lumen|lumen is (?:not visible|hidden)",
        },
        "highlights": {"few": r"few reflections", "many": r"many reflections"},
    },
}
LESION = ("shape", "color", "size", "texture")
# What a description that says nothing of an attribute leaves to be understood.
UNSAID = {"frame": "full", "exposure": "normal"}

DIAGNOSES = (
    r"melanomas?|melanocytic|na?ev(?:us|i)|basal cell|squamous cell|carcinomas?|actinic|keratos[ei]s|bowen|"
    r"dermatofibromas?|angiomas?|hemangiomas?|vascular lesions?|atelectas[ei]s|cardiomegaly|effusions?|"
    r"pneumonia|pneumothora(?:x|ces)|emphysema|fibrosis|hernias?|o?edema|consolidations?|infiltrat(?:e|es|ion)|"
    r"tuberculosis|adenomas?|adenomatous|hyperplastic|serrated|cancers?|tumou?rs?|malignan(?:t|cy)|benign|metasta\w+"
)
REFUSALS = (
    r"i'?m sorry|i am sorry|i (?:can ?not|can't|am unable to|am not able to|won't)|as an ai\b|"
    r"unable to (?:provide|assist|analy[sz]e|describe|view|see)|no image (?:was|is) (?:given|provided)|"
    r"can describe skin lesion, chest x-ray and colonoscopy images only"
)


@cache
def _word(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})(?![\w-])", re.IGNORECASE)


def stated(text: str, modality: str) -> dict[str, list[str]]:
    """Attribute: the values that a description states, each at most once; without those it is silent about.

    Empty for a modality that has no vocabulary.
    """
    patterns: Mapping[str, Mapping[str, str]] = PATTERNS.get(modality, {})
    if not patterns:
        return {}
    own = re.sub(BACKGROUND[modality], " ", text, flags=re.IGNORECASE)
    found = {}
    for attribute, values in patterns.items():
        where = own if attribute in LESION else text
        said = [value for value, pattern in values.items() if _word(pattern).search(where)]
        if said:
            found[attribute] = said
    return found


def diagnoses(text: str, classes: list[str]) -> list[str]:
    """The words of a description that name a disease, or a class of the dataset, in small letters."""
    names = [re.escape(name.replace("_", " ")) for name in classes]
    pattern = "|".join([DIAGNOSES, *sorted(names, key=len, reverse=True)])
    return [match.group().lower() for match in _word(pattern).finditer(text)]


def refuses(text: str) -> bool:
    """Whether a description is none: the model declines, or says that it sees no image."""
    return _word(REFUSALS).search(text) is not None


def words(text: str) -> list[str]:
    """The words of a text in small letters, numbers included."""
    return re.findall(r"[\w'-]+", text.lower())
