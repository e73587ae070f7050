"""The one training loop: batches, checkpoints, averaged weights, curves, several processes.

In: a learner (what a step does) and data as a function of the step. Out: weights and curves; unfinished
state in work/, from where a killed run goes on. It serves the stages `train`, `latents` and `classify`.
"""
