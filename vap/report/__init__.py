"""One page about a run: the stage `report`.

In: results/tables, results/figures, results/samples, results/models, data/prepared, data/captions,
data/prompts, data/autoencoders. Out: results/report.html, which needs no other file, results/summary and
results/distances.csv, what `dvc metrics show` and `dvc plots show` compare.
"""
