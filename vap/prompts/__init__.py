"""Descriptions to the class-specific prompt bank (CSPB): the stage `encode`, and draws from the bank.

In: data/captions/DATASET.parquet and a text encoder (BiomedCLIP, MiniLM, any Hugging Face one).
Out: data/prompts/DATASET.arrow: a row a description, with its token states and the images that it describes.
draws.py decides whose descriptions samples are drawn from: seen, unseen, other, shuffled, one's own.
"""
