"""Measures how close samples are to real images: the stages `evaluate` and `floor`.

In: results/samples/DATASET/RUN-CONDITION.arrow and data/prepared/DATASET.arrow.
Out: results/metrics/DATASET/*.json with Fréchet distance, Inception Score, precision, recall and intervals.
Features are computed once for each set of images and kept in work/features.
"""
