"""Trained models and their samples outside of the pipeline: bundles, cards, images in folders, a local page.

In: results/models/DATASET/RUN/ and what drawing from it needs; results/samples/; bundles.
Out: the folder that is named: a bundle (vap.sampling.bundle says what is in one), or images.
"""
