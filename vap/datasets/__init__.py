"""Reads raw images and writes one Arrow file for each dataset: the stage `prepare`.

In: data/raw/DATASET in an official layout, folders of your own, or a phantom's settings; each has an adapter.
Out: data/prepared/DATASET.arrow with id, class, split, group, hash and the image at the working resolution.
`vap data check` inspects the raw files; share.py draws the images of each ratio of Table 3.
"""
