"""The printed numbers of the paper's Table 3."""

from __future__ import annotations

from typing import NamedTuple


class Printed(NamedTuple):
    """Three values each: 1, 10 and 100 % of the real images."""

    mauc: tuple[float, float, float]
    f1: tuple[float, float, float] | None  # None: printed as "/"


RATIOS = (1, 10, 100)

# dataset, classifier, source of the synthetic images to what is printed; ISIC2019 is not in this table
TABLE3: dict[tuple[str, str, str], Printed] = {
    ("isic2018", "densenet121", "none"): Printed((0.555, 0.866, 0.964), (0.212, 0.414, 0.710)),
    ("isic2018", "densenet121", "stylegan"): Printed((0.913, 0.913, 0.965), (0.526, 0.576, 0.741)),
    ("isic2018", "densenet121", "vap"): Printed((0.923, 0.943, 0.978), (0.645, 0.697, 0.753)),
    ("isic2018", "maxvit", "none"): Printed((0.555, 0.867, 0.964), (0.412, 0.413, 0.713)),
    ("isic2018", "maxvit", "stylegan"): Printed((0.912, 0.926, 0.964), (0.522, 0.570, 0.727)),
    ("isic2018", "maxvit", "vap"): Printed((0.923, 0.940, 0.971), (0.638, 0.687, 0.744)),
    ("chestxray14", "densenet121", "none"): Printed((0.527, 0.684, 0.788), None),
    ("chestxray14", "densenet121", "stylegan"): Printed((0.610, 0.684, 0.790), None),
    ("chestxray14", "densenet121", "vap"): Printed((0.725, 0.766, 0.802), None),
    ("chestxray14", "maxvit", "none"): Printed((0.515, 0.683, 0.779), None),
    ("chestxray14", "maxvit", "stylegan"): Printed((0.607, 0.684, 0.784), None),
    ("chestxray14", "maxvit", "vap"): Printed((0.718, 0.756, 0.799), None),
    ("colonoscopy", "densenet121", "none"): Printed((0.583, 0.879, 0.923), (0.272, 0.803, 0.907)),
    ("colonoscopy", "densenet121", "stylegan"): Printed((0.903, 0.904, 0.925), (0.702, 0.859, 0.918)),
    ("colonoscopy", "densenet121", "vap"): Printed((0.923, 0.935, 0.946), (0.744, 0.880, 0.940)),
    ("colonoscopy", "maxvit", "none"): Printed((0.568, 0.869, 0.919), (0.272, 0.803, 0.896)),
    ("colonoscopy", "maxvit", "stylegan"): Printed((0.896, 0.899, 0.923), (0.692, 0.859, 0.914)),
    ("colonoscopy", "maxvit", "vap"): Printed((0.918, 0.931, 0.943), (0.736, 0.879, 0.930)),
}


def printed(dataset: str, classifier: str, ratio: int, source: str) -> tuple[float | None, float | None]:
    """(mAUC, F1) of a row of ours that is the paper's, None where the paper has no number."""
    found = TABLE3.get((dataset, classifier, source))
    if found is None or ratio not in RATIOS:
        return None, None
    place = RATIOS.index(ratio)
    return found.mauc[place], found.f1[place] if found.f1 else None
