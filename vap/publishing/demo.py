"""`vap demo`: a page on this machine alone to draw from a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vap.common.errors import VapError
from vap.common.markup import markdown
from vap.generators.base import OneStepMethod
from vap.sampling.pipeline import VAPDiffusion

LOOPBACK = "127.0.0.1"
MOST = 32  # images a click
FIRST = 8
FEW = 250  # steps that the slider offers at least


def serve(bundle: Path, port: int, device: str) -> None:
    """Serve the page until the process ends.

    Raises:
        VapError: gradio is not installed, the bundle does not open, or the port is taken.
    """
    gradio = require_gradio()
    pipe = VAPDiffusion.from_pretrained(bundle, device=device)
    print(f"http://{LOOPBACK}:{port} draws from {bundle}; Ctrl-C ends it", flush=True)
    try:
        page(pipe).launch(**settings(gradio, port))
    except OSError as error:
        raise VapError("--port", f"{port}, {error}", "a port that is free", "name another") from None


def require_gradio() -> Any:
    """The library, told to ask no server.

    Raises:
        VapError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        fix = "pip install 'vap-diffusion[demo]'"
        raise VapError("vap demo", "no gradio here", "the package gradio, an extra", fix) from None
    return gradio


def settings(gradio: Any, port: int) -> dict[str, Any]:
    """How the page is launched: on the loopback address, with fonts that the browser has."""
    theme = gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    own = {"server_name": LOOPBACK, "server_port": port, "share": False, "ssr_mode": False, "quiet": True}
    return {**own, "theme": theme, "footer_links": []}


def page(pipe: VAPDiffusion) -> Any:
    """The page, as gradio's Blocks: class, sentence, number, seed, guidance and steps; images; the card."""
    gradio = require_gradio()
    reads = pipe.bank is not None
    one_step = isinstance(pipe.generator.method, OneStepMethod)
    told = pipe.generator.told()

    def draw(label: str, text: str, n: int, seed: int, guidance: float, steps: int) -> Any:
        try:
            drawn = pipe(
                label,
                text.strip() or None if reads else None,
                int(n),
                guidance_scale=None if one_step else float(guidance),
                steps=None if one_step else int(steps),
                seed=int(seed),
            )
        except VapError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        return [
            (image, used or name)
            for image, used, name in zip(drawn.images, drawn.texts, drawn.labels, strict=True)
        ]

    with gradio.Blocks(title=f"VAP-Diffusion: {pipe.name}", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"## {markdown(pipe.name)}\nSynthetic images for research; no finding of any patient."
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                label = gradio.Dropdown(pipe.classes, value=pipe.classes[0], label="Class")
                text = gradio.Textbox(
                    label="Sentence",
                    placeholder="Empty: each image gets a description of its class from the bank",
                    lines=3,
                    visible=reads,
                )
                n = gradio.Slider(1, MOST, FIRST, step=1, label="Number of images")
                seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
                guidance = gradio.Slider(
                    *(0, 10, told.get("guidance_scale", 1.0)),
                    step=0.1,
                    label="Guidance",
                    info="1 is none",
                    visible=not one_step,
                )
                schedule = pipe.generator.schedule
                published = told.get("sampler", {}).get("steps", 1)
                steps = gradio.Slider(
                    *(1, min(schedule.timesteps, max(published, FEW)) if schedule else FEW, published),
                    step=1,
                    label="Steps",
                    visible=not one_step,
                )
                button = gradio.Button("Draw", variant="primary")
            with gradio.Column(scale=2):
                images = gradio.Gallery(
                    label="Images", columns=4, format="png", height=560, object_fit="contain"
                )
        with gradio.Accordion("Model card", open=False):
            gradio.Markdown(pipe.card.rpartition("\n---\n")[2] or "This bundle has no card.")
        inputs = [label, text, n, seed, guidance, steps]
        button.click(draw, inputs, images, api_name="draw")
        text.submit(draw, inputs, images, api_name=False)
    return blocks
