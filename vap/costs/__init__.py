"""What the pipeline will cost before it runs: `vap cost`.

In: params.yaml or a profile, and the rates of rates.yaml. Out: hours, memory and disk of every job.
"""
