"""Draws images from a trained method: the stage `sample`, `vap draw`, and the previews during a training.

In: results/models/DATASET/RUN/, the autoencoder and the prompt bank.
Out: results/samples/DATASET/RUN-CONDITION.arrow and a picture of them; `vap draw` writes the file you name.
"""
