"""Images from a trained method: the stage `sample`, `vap draw` and the grids while a run goes on.

In: results/models/DATASET/RUN/, the autoencoder, the prompt bank.
Out: results/samples/DATASET/RUN-CONDITION.arrow with a grid beside it; `vap draw` writes where it is told.
"""
