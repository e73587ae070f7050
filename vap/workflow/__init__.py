"""All code that knows Snakemake or DVC: which stages must run again, and how a stage is run.

In: params.yaml, dvc.yaml, dvc.lock and the code of vap. Out: data/plan/ with the settings and code hashes of
each stage (plan.py), and the marks of stale stages under .snakemake/stale/ (snakemake.py). dvc.py runs a
stage
through DVC; warm.py starts jobs from a process that has imported the libraries. It serves all stages.
"""
