"""All that knows Snakemake or DVC: the plan of what decides each stage, the stale marks, how a stage is run.

In: params.yaml, dvc.yaml, dvc.lock and the code itself. Out: data/plan/ (plan.py), the marks
under .snakemake/stale/ (snakemake.py), a stage's run through DVC (dvc.py), and forks of a process that has
imported the libraries (warm.py). It serves all stages and knows what none of them does.
"""
