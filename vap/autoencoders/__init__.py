"""Images to latents and back, f_E and f_D: the stage `latents`.

In: data/prepared/DATASET.arrow; for `kl` and `taesd` local weights.
Out: data/autoencoders/DATASET/ (weights, how well they reconstruct) and data/latents/DATASET.arrow (moments).
Four kinds: linear in closed form, a small one trained here, Stable Diffusion's, TAESD.
"""
