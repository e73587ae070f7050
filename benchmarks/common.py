"""What the benchmarks share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOWER_IS_BETTER = ("s", "MB", "loss")
TOY = bool(os.environ.get("VAP_BENCH_TOY"))  # a run that shows that a benchmark starts, in seconds


def sized(full: int, toy: int) -> int:
    """A size of a benchmark: `full`, or `toy` where the environment variable VAP_BENCH_TOY is set."""
    return toy if TOY else full


@dataclass(frozen=True)
class Result:
    """Two measurements of the same work.

    Attributes:
        ours, reference: in `unit`.
        unit: a rate ("img/s": higher is better), or a time, size or loss ("s", "MB", "loss": lower is
            better).
        details: further numbers, for the JSON file.
    """

    ours: float
    reference: float
    unit: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Above 1 where ours is better."""
        if self.unit in LOWER_IS_BETTER:
            return self.reference / self.ours
        return self.ours / self.reference


def best_time(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def side_by_side(works: Sequence[Callable[[], object]], repeats: int, warm: bool = True) -> list[float]:
    """Seconds of the fastest call of each, the works taking turns so that all see the same machine."""
    if warm:
        for work in works:
            work()
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def synchronized(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`work` and, on a GPU, the wait for it."""
    import torch

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def counted_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions of one call."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    _count_varlen_attention()
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        work()
    return float(counter.get_total_flops())


def _count_varlen_attention() -> None:
    """Teach the counter variable-length attention: 4 d operations a pair of tokens forward, 10 d backward."""
    import torch
    import torch.nn.attention.varlen
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for name, each in (("_varlen_attn", 4), ("_varlen_attn_backward", 10)):
        operation = getattr(getattr(torch.ops.torch_attn, name, None), "default", None)
        if operation is None or operation.overloadpacket in flop_registry:
            continue

        def formula(*args: object, each: int = each, out_val: object = None, **kwargs: object) -> int:
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            q_offsets, k_offsets = [a for a in given if a.dtype == torch.int32 and a.ndim == 1][:2]
            heads, size = given[0].shape[-2:]
            pairs = int((q_offsets.diff().long() * k_offsets.diff().long()).sum())
            return each * pairs * heads * size

        register_flop_formula(operation.overloadpacket, get_raw=True)(formula)


def peak_flops(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product: float32 on a CPU, bfloat16 on a GPU."""
    import torch

    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (sized(2048, 256), torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / best_time(synchronized(lambda: a @ b, device), repeats=10)
