"""Diffusion as mathematics, with no network in it: schedules, losses, guidance, samplers.

In: tensors. Out: tensors. Used by the methods of vap/generators that denoise, in training and in sampling.
"""
