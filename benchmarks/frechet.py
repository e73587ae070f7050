"""Fréchet distance of 1,000 x 1,000 features of 1,280 dimensions: ours against torch-fidelity's."""

from __future__ import annotations

import torch

from benchmarks.common import Result, best_time


def run() -> Result:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from vap.metrics.fidelity import frechet_distance

    torch.manual_seed(0)
    x, y = torch.randn(1000, 1280), torch.randn(1000, 1280) * 1.1 + 0.1

    def reference() -> float:
        stats = fid_features_to_statistics(x), fid_features_to_statistics(y)
        return float(fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"])

    ours, theirs = frechet_distance(x, y), reference()
    assert abs(ours - theirs) < 1e-4 * theirs, (ours, theirs)
    return Result(best_time(lambda: frechet_distance(x, y), 3), best_time(reference, 3), "s")
