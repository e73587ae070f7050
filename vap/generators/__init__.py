"""The generative methods, one package or module each: the stage `train`.

In: data/prepared, data/latents or data/prompts, depending on what the method learns from (`kind`).
Out: results/models/DATASET/RUN/ with model.safetensors (averaged weights), config.json and train.csv.
vap/generators/NAME/ has the network, loss and settings of a method; base.py defines what a method must have.
"""
