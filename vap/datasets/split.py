"""Splits and subsets drawn by seed.

An item's place in a draw depends only on (seed, its id or group): adding an image does not shuffle
the others, and no result depends on a library's random numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction

from vap.common.errors import VapError
from vap.datasets.base import Item

SEVERAL = 5  # images of a rare class that a subset keeps, where they take up at most ...
FLOOR_SHARE = Fraction(1, 4)  # ... this share of it


def draw(seed: int, name: str) -> bytes:
    """The key by which `name` is sorted into a random order."""
    return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()


def split(
    items: Sequence[Item], test_fraction: float, seed: int, training: Collection[str] = ()
) -> list[Item]:
    """Set `test_fraction` of the images aside as split "test", the others as "train".

    Groups are never divided. Each class gives about `test_fraction` of its images, at least one
    where it has two groups, and keeps a training image; a group of several classes counts for each.

    Args:
        test_fraction: 0 to 1 (paper: 0.2).
        training: groups that are never set aside; they count among the images.

    Returns:
        The items in their order, with their splits.

    Raises:
        VapError: no group can be set aside.
    """
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        groups[item.group][item.label] += 1
    total = Counter(item.label for item in items)
    n_groups = Counter(label for counts in groups.values() for label in counts)
    target = {
        label: max(round(test_fraction * n), 1) if n_groups[label] > 1 else 0 for label, n in total.items()
    }
    taken: Counter[str] = Counter()
    test: set[str] = set()

    def keeps_training(counts: Counter[str]) -> bool:
        return all(taken[label] + n < total[label] for label, n in counts.items())

    def gain(counts: Counter[str]) -> float:
        """How much nearer to the targets the group would bring the test split."""
        now_next = ((taken[label], taken[label] + n, label) for label, n in counts.items())
        return sum(
            (abs(now - target[label]) - abs(then - target[label])) / total[label]
            for now, then, label in now_next
        )

    def rarity_then_draw(group: str) -> tuple[int, bytes, str]:
        return min(total[label] for label in groups[group]), draw(seed, group), group

    order = sorted((group for group in groups if group not in training), key=rarity_then_draw)
    for group in order:
        if gain(groups[group]) > 0 and keeps_training(groups[group]):
            test.add(group)
            taken += groups[group]
    for label in sorted(total, key=lambda name: (total[name], name)):
        # a class whose groups are all larger than its target: the smallest of them
        if target[label] and not taken[label]:
            able = [g for g in order if label in groups[g] and keeps_training(groups[g])]
            if able:
                group = min(able, key=lambda g: groups[g].total())
                test.add(group)
                taken += groups[group]
    if not test:
        raise VapError(
            "split",
            f"{len(groups)} groups in {len(total)} classes, none to spare for testing",
            "a class with two groups or more",
            "add images, or give the split as train/ and test/ folders",
        )
    return [replace(item, split="test" if item.group in test else "train") for item in items]


def subset(items: Sequence[Item], max_train: int | None, max_test: int | None, seed: int) -> list[Item]:
    """At most `max_train` and `max_test` images, each class in proportion; "val" is kept whole.

    Every class keeps one image, and up to SEVERAL where these are about FLOOR_SHARE of the subset
    or less. The subset of a smaller maximum is contained in that of a larger one.

    Returns:
        The chosen items, in their order.

    Raises:
        VapError: `max_train` is smaller than the number of classes.
    """
    chosen: set[str] = set()
    for name, limit in (("train", max_train), ("val", None), ("test", max_test)):
        members = [item for item in items if item.split == name]
        n_classes = len({item.label for item in members})
        if name == "train" and limit is not None and limit < n_classes:
            raise VapError(
                "prepare.max_train",
                str(limit),
                f"at least {n_classes}, one image of every class",
                "raise it",
            )
        chosen.update(_order(members, seed)[:limit])
    return [item for item in items if item.id in chosen]


def _order(members: Sequence[Item], seed: int) -> list[str]:
    """Ids such that every prefix is a stratified subset: a divisor method (Sainte-Laguë's).

    The j-th image of a class of n comes after a fraction (j + 1/2) / n of the whole, or earlier,
    where j + 1 images of every class are FLOOR_SHARE of it.
    """
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for item in members:
        classes[item.label].append(item.id)
    keyed: list[tuple[Fraction, int, str, str]] = []
    for label, ids in classes.items():
        for j, name in enumerate(sorted(ids, key=lambda name: (draw(seed, name), name))):
            place = Fraction(2 * j + 1, 2 * len(ids))
            if j < SEVERAL:
                place = min(place, Fraction((j + 1) * len(classes), len(members)) / FLOOR_SHARE)
            keyed.append((place if j else Fraction(-1), -len(ids), label, name))
    return [name for *_, name in sorted(keyed)]
