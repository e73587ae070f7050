"""The paper's printed numbers, for the rows of the tables that are the paper's."""

from __future__ import annotations

# Table 1: dataset, method to (FID, IS, precision, recall)
TABLE1: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("isic2018", "stylegan"): (16.968, 2.967, 0.640, 0.427),
    ("isic2018", "cbdm"): (59.963, 3.066, 0.319, 0.128),
    ("isic2018", "ldm"): (53.375, 3.491, 0.395, 0.264),
    ("isic2018", "dit"): (57.368, 2.974, 0.373, 0.251),
    ("isic2018", "uvit"): (52.760, 3.353, 0.346, 0.275),
    ("isic2018", "vap"): (19.790, 4.404, 0.617, 0.812),
    ("isic2019", "stylegan"): (23.725, 4.347, 0.457, 0.360),
    ("isic2019", "cbdm"): (55.676, 4.798, 0.329, 0.254),
    ("isic2019", "ldm"): (57.853, 4.962, 0.341, 0.279),
    ("isic2019", "dit"): (59.816, 5.184, 0.281, 0.277),
    ("isic2019", "uvit"): (43.292, 5.113, 0.372, 0.304),
    ("isic2019", "vap"): (25.232, 5.252, 0.416, 0.496),
    ("chestxray14", "stylegan"): (36.221, 2.296, 0.343, 0.418),
    ("chestxray14", "cbdm"): (52.139, 2.419, 0.276, 0.416),
    ("chestxray14", "ldm"): (47.730, 2.592, 0.343, 0.450),
    ("chestxray14", "dit"): (50.016, 2.560, 0.282, 0.459),
    ("chestxray14", "uvit"): (56.204, 2.723, 0.295, 0.455),
    ("chestxray14", "vap"): (40.487, 2.728, 0.375, 0.600),
    ("colonoscopy", "stylegan"): (57.871, 2.699, 0.214, 0.341),
    ("colonoscopy", "cbdm"): (55.692, 4.725, 0.334, 0.386),
    ("colonoscopy", "ldm"): (46.244, 4.604, 0.464, 0.442),
    ("colonoscopy", "dit"): (53.163, 4.776, 0.334, 0.406),
    ("colonoscopy", "uvit"): (46.265, 4.779, 0.395, 0.492),
    ("colonoscopy", "vap"): (32.147, 4.812, 0.405, 0.612),
}

# Table 2, unseen descriptions: dataset, row to (FID, recall)
TABLE2: dict[tuple[str, str], tuple[float, float]] = {
    ("isic2018", "full"): (26.767, 0.609),
    ("isic2018", "plain"): (52.760, 0.275),
    ("isic2018", "without_pcm"): (28.821, 0.582),
    ("isic2019", "full"): (30.357, 0.361),
    ("isic2019", "plain"): (43.292, 0.304),
    ("isic2019", "without_pcm"): (31.931, 0.338),
    ("chestxray14", "full"): (44.318, 0.509),
    ("chestxray14", "plain"): (56.204, 0.455),
    ("chestxray14", "without_pcm"): (46.335, 0.485),
    ("colonoscopy", "full"): (32.303, 0.519),
    ("colonoscopy", "plain"): (46.265, 0.492),
    ("colonoscopy", "without_pcm"): (37.261, 0.501),
}
