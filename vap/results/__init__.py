"""Writes the tables and the pictures: the stages `table`, `table2`, `table3` and `figure`.

In: results/metrics, results/ablation, results/downstream, results/samples.
Out: results/tables/*.csv and *.md with the paper's values beside ours, and results/figures/DATASET.png.
"""
