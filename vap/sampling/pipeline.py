"""`VAPDiffusion`: a trained model as one object, called as diffusers' pipelines are:

    pipe = VAPDiffusion.from_pretrained("my-bundle")
    image = pipe("MEL", "A large irregular black lesion on pale skin.", seed=1).images[0]

The stage `sample`, `vap draw`, `vap generate` and `vap demo` all draw through vap.sampling.sample.Generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from vap.common.errors import VapError
from vap.common.markup import same_name
from vap.common.places import bank_path, model_path, set_up_torch
from vap.common.progress import Progress
from vap.datasets.share import share_of
from vap.generators.base import checked
from vap.generators.trained import CONFIG
from vap.params import MethodParams, Params, SampleParams
from vap.prompts.bank import PromptBank
from vap.prompts.draws import Draws, SentenceDraws, draws_of, encoder_of, rng_of
from vap.runs import run_of
from vap.sampling.bundle import BANK, BUNDLE, CARD, DECODER, ENCODER, REMAKE, read_bundle
from vap.sampling.sample import Generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from vap.prompts.encoders import TextEncoder

Precision = Literal["fp32", "bf16"]
PRECISION: dict[Any, Precision] = {
    "fp32": "fp32",
    "bf16": "bf16",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
}


class _Cpu(NamedTuple):
    """A section `compute` of a stage on a CPU."""

    threads: int
    device: str = "cpu"
    deterministic: bool = True


class Drawn(NamedTuple):
    """What a call has made; image i belongs to class i and text i.

    Attributes:
        images: of Pillow, RGB.
        labels: their classes.
        texts: their descriptions; None for methods of the class alone.
        seed: with which the same call makes the same images.
    """

    images: list[Image]
    labels: list[str]
    texts: list[str | None]
    seed: int


class VAPDiffusion:
    """A trained model of any method, with its decoder, its prompt bank and its text encoder.

    Made by `from_pretrained` (a bundle) or `of_run` (a model in results/ of this project).

    Attributes:
        classes: names of the classes.
        bank: descriptions that the model was trained on; None for a method of the class alone.
        card: the model card, Markdown with a YAML head; empty for a model that is not published.
        config: of config.json.
        device: where it draws.
        threads: of the CPU, while it draws there.
    """

    def __init__(
        self,
        generator: Generator,
        bank: PromptBank | None,
        share: Mapping[str, str] | None,
        threads: int,
        *,
        encoder: str | None = None,
        card: str = "",
    ) -> None:
        self.generator, self.bank, self.card = generator, bank, card
        self.config, self.classes = generator.config, generator.classes
        self._seen: Draws | None = None
        if bank is not None:
            self._seen = draws_of("seen", bank, self.classes, share=share)
        self._encoder_name = encoder
        self._encoder: TextEncoder | None = None  # loaded for the first sentence
        self.threads = threads

    # ── where it comes from ─────────────────────────────────────────────────────────────────────

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "fp32",
        threads: int | None = None,
    ) -> VAPDiffusion:
        """Open a bundle.

        Args:
            path: a folder that `vap publish` wrote.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: of the network's arithmetic: fp32 or bf16, or torch's names of these.
            threads: CPU threads while it draws; None: as the project that trained it, which gives the same
                bytes as `vap draw` there.

        Raises:
            VapError: the folder is no bundle, or a file of it is absent, damaged or not the published one.
        """
        folder = Path(path)
        config = read_bundle(folder)
        own, name = config[BUNDLE], config["method"]
        where = f"{folder / CONFIG}: {BUNDLE}"
        try:
            entry = {"model": config["model"], "train": config["train"], "sample": own["method_sample"]}
            methods = {name: checked(MethodParams, entry, where, REMAKE)}
            settings = checked(SampleParams, own["sample"], f"{where}.sample", REMAKE)
            settings = settings.model_copy(update={"precision": _precision(dtype)})
            used = int(own["threads"]) if threads is None else threads
            encoder = own["encoder"]
            located = None
            if encoder is not None:
                located = str(folder / ENCODER) if encoder["in_bundle"] else str(encoder["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise VapError(
                where, f"no settings of a bundle ({error!r})", "those of vap publish", REMAKE
            ) from None
        if used < 1:
            raise VapError("threads", str(used), "1 or more", "correct it")
        generator = Generator(folder, _device(device), methods, settings, decoder=folder / DECODER)
        bank, share = None, None
        if generator.method.kind == "prompts":
            bank = PromptBank(folder / BANK)
            share = share_of(bank.file, 100, 0)  # its images have running numbers, which keeps their order
        card = folder / CARD
        return cls(
            generator,
            bank,
            share,
            used,
            encoder=located,
            card=card.read_text(encoding="utf-8") if card.is_file() else "",
        )

    @classmethod
    def of_run(cls, params: Params, dataset: str, name: str) -> VAPDiffusion:
        """Open results/models/DATASET/NAME of this project, to draw as params.yaml says.

        Raises:
            VapError: the model, its bank or its decoder is absent or does not fit.
        """
        device = set_up_torch(params.compute)
        generator = Generator(model_path(dataset, name), device, params.method, params.sample, params.compute)
        bank, share = None, None
        if generator.method.kind == "prompts":
            bank = PromptBank(bank_path(dataset))
            share = share_of(bank.file, run_of(params, name).percent, params.seed)
        return cls(generator, bank, share, params.compute.threads)

    # ── where it is ─────────────────────────────────────────────────────────────────────────────

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.generator.device

    @property
    def name(self) -> str:
        """Dataset and method, or run of one."""
        return f"{self.config['dataset']} {self.config.get('run', self.config['method'])}"

    def to(
        self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> VAPDiffusion:
        """Move it to another device, or let it compute in another dtype; returns itself."""
        if device is not None:
            self.generator.to(_device(device))
            self._encoder = None
        if dtype is not None:
            self.generator = self.generator.varied(precision=_precision(dtype))
        return self

    def __repr__(self) -> str:
        text = f", {len(self.bank) - 1} descriptions" if self.bank is not None else ""
        return f"VAPDiffusion({self.name}: {len(self.classes)} classes{text}, on {self.device})"

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────

    def __call__(
        self,
        labels: str | Sequence[str],
        texts: str | Sequence[str] | None = None,
        n: int = 1,
        *,
        guidance_scale: float | None = None,
        steps: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        progress: bool = False,
    ) -> Drawn:
        """Draw images.

        Args:
            labels: a class, or one for each text.
            texts: a description, or one for each class; None: each image gets one of its class from the bank.
            n: images of each class and text.
            guidance_scale: w >= 0; 1 is no guidance; None: as published.
            steps: evaluations of the network; None: as published.
            seed: 0 or more. Image i depends on (seed, i), its class and its text alone. None is 0.
            generator: where the seed is drawn from instead, so that further calls make further images.
            device, dtype: as `to`, before it draws.
            progress: whether a line on standard error says how far it is.

        Raises:
            VapError: no such class, counts that do not fit, a text for a method that reads none, or a number
                out of range.
        """
        self.to(device, dtype)
        wanted = self._labels(labels)
        given = self._texts(texts)
        pairs = max(len(wanted), len(given or ()))
        for what, found in (("labels", wanted), ("texts", given)):
            if found is not None and len(found) not in (1, pairs):
                expected = f"1, or {pairs} as there are {'texts' if what == 'labels' else 'labels'}"
                raise VapError(what, f"{len(found)} of them", expected, "give as many of both, or one of one")
        if n < 1:
            raise VapError("n", str(n), "1 or more images", "correct it")
        seed = _seed(seed, generator)
        chosen = [wanted[i % len(wanted)] for i in range(pairs) for _ in range(n)]
        net = self.generator.varied(guidance_scale, steps)
        with self._as_trained():
            rows, source = None, self._seen
            if given is not None and self.bank is not None:
                distinct = list(dict.fromkeys(given))
                source = self._sentences(distinct)
                rows = [distinct.index(given[i % len(given)]) for i in range(pairs) for _ in range(n)]
            elif source is not None:
                rows = [source.draw(label, rng_of(seed, i)) for i, label in enumerate(chosen)]
            images = self._draw(net, chosen, rows, source, seed, progress)
        used: list[str | None] = [None] * len(images)
        if rows is not None and source is not None:
            used = [source.text(row) for row in rows]
        return Drawn(images, chosen, used, seed)

    def _draw(
        self,
        net: Generator,
        labels: list[str],
        rows: list[int] | None,
        source: Draws | None,
        seed: int,
        progress: bool,
    ) -> list[Image]:
        from PIL import Image

        images: list[Image.Image] = []
        counter = Progress(f"draw {self.name}", len(labels), "img") if progress else None
        with counter or contextlib.nullcontext():
            for start in range(0, len(labels), net.settings.batch_size):
                part = slice(start, start + net.settings.batch_size)
                numbers = [self.classes.index(label) for label in labels[part]]
                chosen = None if rows is None else rows[part]
                places = list(range(start, start + len(numbers)))
                found = net.draw(places, numbers, chosen, self.bank, seed, source)
                images += map(Image.fromarray, found)
                if counter is not None:
                    counter.advance(len(numbers))
        return images

    def _labels(self, labels: str | Sequence[str]) -> list[str]:
        """These classes as `classes` spells them, in whichever of Unicode's forms they come."""
        asked = [labels] if isinstance(labels, str) else list(labels)
        found = [same_name(label, self.classes) if isinstance(label, str) else None for label in asked]
        known = [label for label in found if label is not None]
        if len(known) < len(asked) or not asked:
            what = repr(asked[found.index(None)]) if asked else "none"
            raise VapError("class", what, f"one of {', '.join(self.classes)}", "name one")
        return known

    def _texts(self, texts: str | Sequence[str] | None) -> list[str] | None:
        if texts is None:
            return None
        if self.bank is None:
            method = self.config["method"]
            expected = "none: the method uses the class alone"
            raise VapError(f"a description with {method}", "one", expected, "leave it out")
        found = [texts] if isinstance(texts, str) else list(texts)
        for text in found or [""]:
            if not isinstance(text, str) or not text.strip():
                what = "an empty one" if isinstance(text, str) else f"a {type(text).__name__}"
                raise VapError("text", what, "a sentence", "leave texts out to draw from the bank")
        return found

    def _sentences(self, texts: Sequence[str]) -> SentenceDraws:
        """Sentences as the bank's encoder has them; it is loaded once."""
        assert self.bank is not None
        if self._encoder is None:
            self._encoder = encoder_of(self.bank, self.device, self._encoder_name)
        entries = [("", text) for text in texts]  # of no class: they are asked for by number
        return SentenceDraws(entries, self.bank, self.device, encoder=self._encoder)

    @contextlib.contextmanager
    def _as_trained(self) -> Iterator[None]:
        """Threads and deterministic kernels as the stages have them, on a CPU; then as it was."""
        if self.device.type != "cpu":
            yield
            return
        threads = torch.get_num_threads()
        exact, warn = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        try:
            set_up_torch(_Cpu(self.threads))
            yield
        finally:
            torch.set_num_threads(threads)
            torch._C._set_deterministic_algorithms(exact, warn_only=warn)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


# ── what is asked for ───────────────────────────────────────────────────────────────────────────────


def _device(name: str | torch.device) -> torch.device:
    """A device that is there; auto takes a GPU before the CPU."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    try:
        device = torch.device(there[0] if name == "auto" else name)
    except RuntimeError:
        raise VapError("device", repr(name), f"auto, {', '.join(there)}", "name one of these") from None
    if device.type not in there or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise VapError("device", str(name), f"one that is there: {', '.join(there)}", "use auto")
    return device


def _precision(dtype: str | torch.dtype) -> Precision:
    if dtype not in PRECISION:
        raise VapError("dtype", str(dtype), "fp32 or bf16", "name one of these")
    return PRECISION[dtype]


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise VapError("seed and generator", "both", "one of them", "leave one out")
    if generator is not None:
        return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    if seed is None:
        return 0
    if seed < 0:
        raise VapError("seed", str(seed), "0 or more", "correct it")
    return int(seed)
