"""Encodes images into latents and decodes them (f_E and f_D): the stage `latents`.

In: data/prepared/DATASET.arrow, and local weights for `kl` and `taesd`.
Out: data/autoencoders/DATASET/ (weights, quality of the reconstructions), data/latents/DATASET.arrow
(moments).
There are four kinds: a linear one in closed form, a small one trained here, Stable Diffusion's, and TAESD.
"""
