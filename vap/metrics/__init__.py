"""How near samples are to real images: the stages `evaluate` and `floor`.

In: results/samples/DATASET/RUN-CONDITION.arrow and data/prepared/DATASET.arrow.
Out: results/metrics/DATASET/*.json: Fréchet distance, Inception Score, precision, recall, with intervals.
Features are computed once per set of images and kept in work/features.
"""
