"""The generative methods, a package or module each: the stage `train`.

In: data/prepared, data/latents or data/prompts, as the method learns (`kind`).
Out: results/models/DATASET/RUN/: model.safetensors (averaged weights), config.json, train.csv.
A method's network, loss and settings stand side by side in vap/generators/NAME/; base.py says what one is.
"""
