"""Estimates what the pipeline will cost before it runs: `vap cost`.

In: params.yaml or a profile, and the measured or assumed speeds in rates.yaml.
Out: hours, memory and disk space of every job.
"""
