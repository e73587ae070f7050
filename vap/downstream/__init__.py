"""Measures whether synthetic images help a classifier: the stage `classify` (Table 3).

In: data/prepared/DATASET.arrow and the samples of a method, or no samples.
Out: results/downstream/DATASET/*.json with AUC and F1 of a DenseNet-121 or MaxViT, and their intervals.
"""
