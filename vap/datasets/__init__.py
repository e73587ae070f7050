"""Raw images to one Arrow file: the stage `prepare`.

In: data/raw/DATASET in an official layout, folders of one's own, or a phantom's settings (one adapter each).
Out: data/prepared/DATASET.arrow: id, class, split, group, hash and image at the working resolution.
`vap data check` looks at the raw files; share.py draws the images of a ratio for Table 3.
"""
