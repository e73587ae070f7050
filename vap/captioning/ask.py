"""The three steps of VAPS for every image of a dataset, many images at once (paper §2.2)."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterator

from vap.captioning.client import ChatClient
from vap.captioning.journal import Journal
from vap.captioning.questions import Questions
from vap.captioning.replies import Answer, ImageFailed
from vap.captioning.server import Served
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError, tell
from vap.common.progress import Progress
from vap.params import CaptionParams


def image_steps(settings: CaptionParams) -> tuple[int, ...]:
    """The questions that are asked about each image: step 2 is not where one answer serves all."""
    last = {"impression": 1, "impression+knowledge": 2, "all": 3}[settings.steps]
    return tuple(step for step in range(1, last + 1) if step != 2 or settings.step2 == "per_image")


def image_seed(seed: int, image: str) -> int:
    """The seed of an image's answers: 31 bits of the run's seed and the image's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {image}".encode()).digest()[:4], "big") >> 1


def shrink(png: bytes, side: int | None) -> bytes:
    """A PNG whose longer side has at most `side` pixels; the same bytes where it has no more, or no limit."""
    if side is None:
        return png
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= side:
            return png
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


async def ask_all(
    settings: CaptionParams,
    seed: int,
    served: Served,
    questions: Questions,
    prepared: ArrowFile,
    journal: Journal,
) -> None:
    """Ask what the journal lacks: steps 1 and 3 of an image one after the other, so that a prefix cache holds
    the image, and step 2 once for all images (or once an image, with caption.step2: per_image).

    Raises:
        VapError: the servers refuse or are gone, or more images failed than caption.max_failed allows.
        ExceptionGroup: of such errors.
    """
    allowed = int(settings.max_failed * len(prepared))
    if journal.failed > allowed:
        journal.forget_failures()
    todo = journal.open_rows(image_steps(settings)[-1])
    if not todo:
        return
    client = ChatClient(
        served.urls,
        settings.model,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        seed=seed,
        recover=served.recover,
    )
    label = f"caption {prepared.path.stem}"
    with Progress(label, len(prepared), "caption") as progress:
        if len(todo) < len(prepared):
            progress.skip(len(prepared) - len(todo))
        async with client:
            await client.check()
            if settings.steps != "impression" and settings.step2 == "shared" and journal.shared is None:
                try:
                    journal.add(None, 2, await client.ask(questions.knowledge()))
                except ImageFailed as failed:
                    raise VapError(
                        label,
                        f"no answer to question 2: {failed}",
                        "an answer",
                        "see the server's log: this question is asked for all images",
                    ) from None
            chain = _Chain(client, settings, seed, questions, prepared, journal)
            rows = iter(todo)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(settings.concurrency, len(todo))):
                    group.create_task(_work(chain, rows, allowed, progress))
    if client.cut_by_context:
        tell(
            f"{label}: the model's context cut {client.cut_by_context} answers before caption.max_tokens: "
            "raise max_model_len, or lower caption.max_tokens"
        )


async def _work(chain: _Chain, rows: Iterator[int], allowed: int, progress: Progress) -> None:
    """One of several workers that take the next image from `rows`, which they share."""
    journal, total = chain.journal, len(chain.prepared)
    for row in rows:
        try:
            await chain.describe(row)
        except ImageFailed as failed:
            journal.fail(row, str(failed))
            if journal.failed > allowed:
                image = chain.prepared.value("id", row)
                raise VapError(
                    f"caption {chain.prepared.path.stem}",
                    f"{journal.failed} of {total} images without a description, the last {image}: {failed}",
                    f"at most {allowed} (caption.max_failed: {chain.settings.max_failed})",
                    "mend the cause or raise caption.max_failed, then run again: answers are kept",
                ) from None
        progress.advance(1, f"{journal.failed} failed" if journal.failed else "")


class _Chain:
    """The questions about one image; answers that the journal has are not asked again."""

    def __init__(
        self,
        client: ChatClient,
        settings: CaptionParams,
        seed: int,
        questions: Questions,
        prepared: ArrowFile,
        journal: Journal,
    ) -> None:
        self.client, self.settings, self.seed = client, settings, seed
        self.questions, self.prepared, self.journal = questions, prepared, journal

    async def describe(self, row: int) -> None:
        """Ask the steps in turn.

        Raises:
            ImageFailed: a step gets no answer; it says which.
        """
        seed = image_seed(self.seed, self.prepared.value("id", row))
        png = await self._image(row)
        answers = {2: self.journal.shared} if self.journal.shared else {}
        for step in image_steps(self.settings):
            answers[step] = self.journal.answer(row, step) or await self._ask(row, step, seed, png, answers)

    async def _image(self, row: int) -> bytes:
        png: bytes = self.prepared.value("image", row)
        side = self.settings.max_image_side
        return png if side is None else await asyncio.to_thread(shrink, png, side)

    async def _ask(self, row: int, step: int, seed: int, png: bytes, before: dict[int, Answer]) -> Answer:
        if step == 1:
            messages = self.questions.impression(png)
        elif step == 2:
            messages = self.questions.knowledge()
        else:
            messages = self.questions.summary(png, before[1].text, before[2].text)
        try:
            answer = await self.client.ask(messages, seed)
        except ImageFailed as failed:
            raise ImageFailed(f"question {step}: {failed}") from None
        self.journal.add(row, step, answer)
        return answer
