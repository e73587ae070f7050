"""Describes every image in three questions (VAPS): the stage `caption`, and the audits of the descriptions.

In: data/prepared/DATASET.arrow, and a server: vLLM, any OpenAI-compatible server, or the measured describer.
Out: data/captions/DATASET.parquet with the answers, the description, the model and the version of the
questions.
The questions are in questions/*.yaml, one file for each modality.
"""
