"""Three questions about every image (VAPS): the stage `caption`, and the audits of what was said.

In: data/prepared/DATASET.arrow and a server: vLLM, any OpenAI-compatible one, or the measured describer.
Out: data/captions/DATASET.parquet: the answers, the description, the model, the version of the questions.
The questions stand in questions/*.yaml, a file a modality.
"""
