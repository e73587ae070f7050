"""Guided sampling in 50 steps at the paper's width, on this machine: here against the manner of the released
code, which passes 513 tokens twice a step. Both take the same sampler, noise, classes and descriptions of
about 80 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import Result, counted_flops, peak_flops, side_by_side, synchronized
from benchmarks.references.released import PlainUViT
from benchmarks.train_step import condition, our_method, own_sizes
from vap.diffusion.guidance import guided, guided_together
from vap.diffusion.sampler import sample
from vap.diffusion.schedule import Schedule
from vap.training.batch import described

STEPS, SCALE = 50, 2.0


def run() -> Result:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    sizes, B = own_sizes(), 50 if gpu else 2
    torch.manual_seed(0)
    c, padded = condition(sizes, B)
    label = c.label.to(device)
    null_label = torch.full_like(label, sizes.classes)
    null_text = torch.randn(1, 2, sizes.text_width).expand(B, -1, -1)  # [CLS][SEP] of the empty description
    null = described(null_label.cpu(), null_text, torch.ones(B, 2, dtype=torch.bool)).to(device)
    conditional, padded = c.to(device), padded.to(device)
    padded_null = torch.randn(1, sizes.text_tokens, sizes.text_width, device=device).expand(B, -1, -1)
    schedule = Schedule("scaled_linear", 1000, 0.00085, 0.012)
    noise = torch.randn(B, sizes.channels, sizes.side, sizes.side).to(device)

    method, shapes = our_method("paper", sizes)
    net, plain = method.build(shapes).to(device).eval(), PlainUViT(sizes).to(device).eval()
    if gpu:
        net.compile()
        both = null.joined(conditional)
        pair = method.predictor(net, both, both, schedule)
        predict = guided_together(lambda x, t: pair(x, t, False), SCALE)
    else:
        predict = guided(method.predictor(net, conditional, null, schedule), SCALE)

    def plain_predict(x: Tensor, t: Tensor) -> Tensor:
        unconditional = plain(x, t, null_label, padded_null)[0]
        return torch.lerp(unconditional, plain(x, t, label, padded)[0], SCALE)

    def draw(predictor: object, steps: int) -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            sample(predictor, schedule, noise, sampler="dpmpp", steps=steps, order=3)  # type: ignore[arg-type]

    works = [synchronized(lambda p=p: draw(p, STEPS), device) for p in (predict, plain_predict)]
    for p in (predict, plain_predict):
        draw(p, 2)  # warm
    ours, reference = side_by_side(works, repeats=3 if gpu else 1, warm=False)
    flops = (
        counted_flops(lambda: draw(predict, 1)) * STEPS,
        counted_flops(lambda: draw(plain_predict, 1)) * STEPS,
    )
    peak = peak_flops(device)
    details: dict[str, float | str] = {"device": str(device), "batch": B, "peak_tflops": peak / 1e12}
    for name, work, seconds in (("ours", flops[0], ours), ("reference", flops[1], reference)):
        details |= {
            f"{name}_s": seconds,
            f"{name}_tflop": work / 1e12,
            f"{name}_tflops": work / seconds / 1e12,
            f"{name}_share_of_peak": work / seconds / peak,
        }
    return Result(B / ours, B / reference, "img/s", details)
