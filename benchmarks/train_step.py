"""A training step at the paper's width (512, depth 16, 256 image tokens, captions of about 80 tokens) on this
machine: VAP-Diffusion here against a plain loop in the manner of the released code (references/released.py).

Both take the same latents, noise, times, classes and descriptions; the reference gets these padded to 256
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import TOY, Result, counted_flops, peak_flops, side_by_side, synchronized
from benchmarks.references.released import PlainTrainer, Sizes
from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes
from vap.generators.vap.method import Method, VapModelParams, VapTrainParams
from vap.training.batch import Batch, Condition, described
from vap.training.ema import Ema

CAPTION = (64, 96)  # real tokens of a description, about 80 on average


def own_sizes() -> Sizes:
    """As published; tiny ones for a run that only shows that the benchmark starts."""
    return Sizes(width=64, depth=2, heads=2, side=8, text_tokens=128, prototypes=4) if TOY else Sizes()


def condition(sizes: Sizes, batch: int) -> tuple[Condition, Tensor]:
    """Random descriptions as ours (ragged, masked), and padded to 256 tokens."""
    lengths = torch.randint(*CAPTION, (batch,))
    padded = torch.randn(batch, sizes.text_tokens, sizes.text_width)
    S = -(-int(lengths.max()) // 32) * 32  # as vap/generators/train.py has it for a GPU
    mask = torch.arange(S) < lengths[:, None]
    label = torch.randint(0, sizes.classes, (batch,))
    ours = described(label, padded[:, :S].masked_fill(~mask[..., None], 0), mask)
    ours.room = int(lengths.sum()) + 8 * math.isqrt(batch)  # vap/training/data.py knows how lengths vary
    return ours, padded


def our_method(pcm: str, sizes: Sizes) -> tuple[Method, Shapes]:
    """VAP-Diffusion at the paper's width, and the shapes of its data."""
    model = {"width": sizes.width, "depth": sizes.depth, "heads": sizes.heads, "patch": sizes.patch}
    train = {"steps": 1, "batch_size": 1, "lr": 2e-4, "weight_decay": 0.03, "betas": [0.9, 0.9]}
    method = Method(
        VapModelParams.model_validate(
            {
                **model,
                "mlp_ratio": 4.0,
                "final_init": "identity",
                "linear_init": "published",
                "pcm": pcm,
                "prototype_tokens": sizes.prototypes,
                "label_token": pcm == "paper",
            }
        ),
        VapTrainParams.model_validate(
            {
                **train,
                "warmup_steps": 0,
                "ema_decay": 0.9999,
                "condition_dropout": 0.1,
                "grad_clip": None,
                "predicts": "noise",
                "start_from": None,
                "alpha": 1.0,
            }
        ),
    )
    shapes = Shapes(sizes.side, sizes.channels, sizes.classes, sizes.text_width, sizes.text_tokens)
    return method, shapes


def our_step(method: Method, shapes: Shapes, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A step as vap/generators/denoising.py makes it."""
    net = method.build(shapes).to(device)
    ema = Ema(net, 0.9999, warmup=False)
    schedule = Schedule("scaled_linear", 1000, 0.00085, 0.012)
    if device.type == "cuda":
        net.compile()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-4, betas=(0.9, 0.9), weight_decay=0.03, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, _ = method.loss(net, batch, schedule)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(net, 1)

    return step


def run() -> Result:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, B = own_sizes(), 256 if device.type == "cuda" else 2
    torch.manual_seed(0)
    c, padded = condition(sizes, B)
    x0 = torch.randn(B, sizes.channels, sizes.side, sizes.side)
    batch = Batch(x0, c, torch.randint(1, 1001, (B,)), torch.randn_like(x0)).to(device)
    schedule = Schedule("scaled_linear", 1000, 0.00085, 0.012)
    plain = PlainTrainer(sizes, device)
    given = (
        schedule.add_noise(batch.x0, batch.noise, batch.t),
        batch.t,
        batch.noise,
        batch.condition.label,
        padded.to(device),
    )
    ours = our_step(*our_method("paper", sizes), batch, device)
    released = our_step(*our_method("released", sizes), batch, device)

    def reference() -> None:
        plain.step(*given)

    times = side_by_side(
        [synchronized(work, device) for work in (ours, released, reference)],
        repeats=20 if device.type == "cuda" else 4,
    )
    peak = peak_flops(device)
    details: dict[str, float | str] = {"device": str(device), "batch": B, "peak_tflops": peak / 1e12}
    for name, work, seconds in zip(
        ("ours", "ours_released_pcm", "reference"), (ours, released, reference), times, strict=True
    ):
        flops = counted_flops(work)
        details |= {
            f"{name}_s": seconds,
            f"{name}_tflop": flops / 1e12,
            f"{name}_tflops": flops / seconds / 1e12,
            f"{name}_share_of_peak": flops / seconds / peak,
        }
    return Result(B / times[0], B / times[2], "img/s", details)
