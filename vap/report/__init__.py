"""One page about a run: the stage `report`.

In: results/tables, results/figures, results/samples, results/models, data/prepared, data/captions,
data/prompts, data/autoencoders. Out: results/report.html, which needs no other file, and results/summary,
what `dvc metrics show` and `dvc plots show` compare.
"""
