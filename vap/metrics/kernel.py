"""What needs every pair of images: precision and recall, density and coverage, KID.

All of them are functions of inner products, so one sweep over blocks of pairs serves them all; no more than a
block of it is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048  # images a side of a block of pairs: 16 MB
SAME = 1e-6  # of the mean squared norm: two images nearer than that (squared) are one; float32's rounding


class Pairs:
    """Inner products of two sets, block by block, about the second set's mean.

    Args:
        x, y: (N, d) and (M, d).

    The mean is taken off to spare digits: float32 products of features that are all positive lose two.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.sets = {"x": x, "y": y}
        self.mean = sum(
            (y[rows].double().sum(0) for rows in blocks(len(y))), torch.zeros(1, device=y.device)
        ) / len(y)
        self.norms = {name: self._norms(name) for name in self.sets}  # squared, about the mean
        self.dots = {name: self._dots(name) for name in self.sets}  # with the mean, uncentred
        self.same = SAME * float(self.norms["y"].double().mean())

    def rows(self, name: str, rows: slice) -> Tensor:
        part = self.sets[name][rows]
        return (part.double() - self.mean).to(part.dtype)

    def _norms(self, name: str) -> Tensor:
        parts = [self.rows(name, rows).square().sum(1) for rows in blocks(len(self.sets[name]))]
        return torch.cat(parts)

    def _dots(self, name: str) -> Tensor:
        """m·z - m·m/2 of each row z: x·y = (x - m)·(y - m) + dot(x) + dot(y)."""
        half = self.mean.square().sum() / 2
        parts = [self.sets[name][rows].double() @ self.mean - half for rows in blocks(len(self.sets[name]))]
        return torch.cat(parts)

    def sweep(self, a: str, b: str) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows of a, rows of b, products); of a set with itself each pair of blocks once."""
        for left in blocks(len(self.sets[a])):
            one = self.rows(a, left)
            for right in blocks(len(self.sets[b])):
                if a != b or right.start >= left.start:
                    other = one if a == b and right == left else self.rows(b, right)
                    yield left, right, one @ other.T

    def squared(self, a: str, left: slice, b: str, right: slice, products: Tensor) -> Tensor:
        """Squared distances; 0 for what is the same image but for rounding."""
        norms = self.norms[a][left, None] + self.norms[b][right]
        return torch.threshold_(norms.sub_(products, alpha=2), self.same, 0.0)


def blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────


def neighbour_metrics(x: Tensor, y: Tensor, k: int) -> dict[str, float]:
    """Improved precision and recall, density and coverage of generated x against real y.

    With B(z) the closed ball about z that reaches to its k-th nearest neighbour in its own set:

    Returns:
        precision: share of the generated that lie in the B of a real image; recall: share of the real that
            lie in the B of a generated one (Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1-2).
        density: how many real B a generated image lies in, over k, on average, >= 0; coverage: share of the
            real whose B holds a generated image (Naeem et al. 2020, arXiv:2002.09797, Eq. 4-5).
    """
    return _neighbours(Pairs(x, y), k, None)


def _neighbours(pairs: Pairs, k: int, kid: Subsets | None) -> dict[str, float]:
    reach = {name: _reach(pairs, name, k, kid) for name in ("x", "y")}
    n, m = len(pairs.sets["x"]), len(pairs.sets["y"])
    device = pairs.mean.device
    precise = torch.zeros(n, dtype=torch.bool, device=device)
    recalled, covered = (torch.zeros(m, dtype=torch.bool, device=device) for _ in range(2))
    inside = 0
    for left, right, products in pairs.sweep("x", "y"):
        if kid is not None:
            kid.add("x", left, "y", right, products)
        squared = pairs.squared("x", left, "y", right, products)
        in_real = squared <= reach["y"][right]
        precise[left] |= in_real.any(1)
        covered[right] |= in_real.any(0)
        inside += int(in_real.sum())
        recalled[right] |= (squared <= reach["x"][left, None]).any(0)
    return {
        "precision": int(precise.sum()) / n,
        "recall": int(recalled.sum()) / m,
        "density": inside / (k * n),
        "coverage": int(covered.sum()) / m,
    }


def _reach(pairs: Pairs, name: str, k: int, kid: Subsets | None) -> Tensor:
    """Squared distance of each image to its k-th nearest neighbour, itself not counted: (N,)."""
    n = len(pairs.sets[name])
    nearest = torch.full((n, k + 1), torch.inf, dtype=pairs.norms[name].dtype, device=pairs.mean.device)
    for left, right, products in pairs.sweep(name, name):
        if kid is not None:
            kid.add(name, left, name, right, products)
        squared = pairs.squared(name, left, name, right, products)
        nearest[left] = _smallest(nearest[left], squared, k + 1)
        if left != right:
            nearest[right] = _smallest(nearest[right], squared.T.contiguous(), k + 1)
    return nearest[:, k]  # the smallest of all is its own distance, 0


def _smallest(known: Tensor, more: Tensor, k: int) -> Tensor:
    found = more.topk(min(k, more.shape[1]), dim=1, largest=False).values
    return torch.cat([known, found], 1).topk(k, dim=1, largest=False).values


# ── KID ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kid:
    """Mean and standard deviation over the subsets, None of fewer than 2 images, and how many these have."""

    mean: float | None
    std: float | None
    size: int


class Subsets:
    """Kernel sums of random subsets of both sets, gathered from the blocks of a sweep.

    Args:
        pairs: the sets.
        count: number of subsets.
        size: images in each; torch-fidelity's rule where both sets have as many, else half the smaller set
            (a subset that is the whole set has no spread).
        seed: of the draw, which is torch-fidelity's.
    """

    def __init__(self, pairs: Pairs, count: int, size: int, seed: int) -> None:
        self.pairs, self.count = pairs, count
        lengths = {name: len(features) for name, features in pairs.sets.items()}
        smaller = min(lengths.values())
        self.size = size if smaller >= size else smaller // 2
        rng = np.random.RandomState(seed)  # torch-fidelity's draw
        dtype, device = pairs.norms["x"].dtype, pairs.mean.device
        self.members = {
            name: torch.zeros(n, count, dtype=dtype, device=device) for name, n in lengths.items()
        }
        for subset in range(count):
            for name, n in lengths.items():
                rows = torch.from_numpy(rng.choice(n, self.size, replace=False)).to(device)
                self.members[name][rows, subset] = 1
        self.sums = {
            pair: torch.zeros(count, dtype=torch.float64, device=device) for pair in ("xx", "yy", "xy")
        }

    def add(self, a: str, left: slice, b: str, right: slice, products: Tensor) -> None:
        """Add a block's kernels k(x, y) = (x·y/d + 1)³; of a set with itself, those of different images."""
        scale = 1 / self.pairs.sets[a].shape[1]
        rows = (self.pairs.dots[a][left] * scale + 1).to(products.dtype)
        columns = (self.pairs.dots[b][right] * scale).to(products.dtype)
        base = torch.add(rows[:, None], columns).add_(products, alpha=scale)
        kernel = base.square().mul_(base)
        if a == b and left == right:
            kernel.fill_diagonal_(0)
        within = kernel @ self.members[b][right]  # (rows, count)
        total = within.mul_(self.members[a][left]).sum(0, dtype=torch.float64)
        self.sums[a + b] += total * (2 if a == b and left != right else 1)

    def result(self) -> Kid:
        """Unbiased squared maximum mean discrepancy (Bińkowski et al. 2018, arXiv:1801.01401, Eq. 4)."""
        n = self.size
        if n < 2:
            return Kid(None, None, n)
        values = (self.sums["xx"] + self.sums["yy"]) / (n * (n - 1)) - 2 * self.sums["xy"] / n**2
        return Kid(float(values.mean()), float(values.std(correction=0)), n)


def kernel_inception_distance(x: Tensor, y: Tensor, count: int, size: int, seed: int) -> Kid:
    """KID of generated x and real y by itself; see `Subsets`."""
    pairs = Pairs(x, y)
    kid = Subsets(pairs, count, size, seed)
    for a, b in ("xx", "yy", "xy"):
        for left, right, products in pairs.sweep(a, b):
            kid.add(a, left, b, right, products)
    return kid.result()


def pair_metrics(
    x: Tensor, y: Tensor, k: int, count: int, size: int, seed: int
) -> tuple[dict[str, float], Kid]:
    """`neighbour_metrics` and `kernel_inception_distance` in one sweep."""
    pairs = Pairs(x, y)
    kid = Subsets(pairs, count, size, seed)
    return _neighbours(pairs, k, kid), kid.result()
