"""Tables and pages: the stages `table`, `table2`, `table3` and `figure`.

In: results/metrics, results/ablation, results/downstream, results/samples.
Out: results/tables/*.csv and *.md with the paper's values beside ours, results/figures/DATASET.png.
"""
