"""The chat protocol of the measured describer: an OpenAI chat request in, an answer out.

Which question is asked is read from its words alone, as a language model would.
"""

import base64
import binascii
import io
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vap.captioning.measured import describe
from vap.datasets.modes import as_rgb

MODEL_ID = "measured-describer"
MAX_MODEL_LEN = 8192
MAX_ASPECT = 200
IMAGE_TOKENS = 64

_ROLES = ("system", "user", "assistant", "developer", "tool")
_MODALITY_WORDS = {
    "chest_xray": ("chest", "x-ray", "xray", "radiograph", "lung", "thora"),
    "colonoscopy": ("colon", "colorectal", "polyp", "endoscop", "mucosa", "bowel"),
    "dermoscopy": ("skin", "dermat", "dermoscop", "mole"),
}


_ATTRIBUTE_WORDS = {"shape": "shape", "color": "colou?r|density", "size": "size", "texture": "texture"}


class ChatError(Exception):
    """A request that is refused: HTTP status and the fields of the error body."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": status},
        }


@dataclass(frozen=True)
class Turn:
    """One message: who, its text, and its images."""

    role: str
    text: str
    images: tuple[NDArray[np.uint8], ...]


def bad_request(message: str, param: str | None = None) -> ChatError:
    """A 400, as vLLM words it."""
    return ChatError(400, message, "BadRequestError", param)


def complete(request: object) -> dict[str, Any]:
    """Answer one chat completion request.

    Args:
        request: the decoded JSON body.

    Returns:
        the body of the 200 response.

    Raises:
        ChatError: the request is refused.
    """
    if not isinstance(request, dict):
        raise bad_request("Input should be a valid dictionary")
    model = request.get("model")
    if model is not None and model != MODEL_ID:
        raise ChatError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
    if request.get("stream"):
        raise bad_request("streaming is not supported by this model", "stream")
    choices = _whole(request, "n", 1, 16) or 1
    limit = _limit(request)
    turns = _turns(request.get("messages"))
    prompt_tokens = sum(len(t.text.split()) + IMAGE_TOKENS * len(t.images) for t in turns)
    if prompt_tokens >= MAX_MODEL_LEN:
        raise bad_request(
            f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your request "
            f"has {prompt_tokens} input tokens.",
            "messages",
        )
    words = answer(turns).split()
    room = MAX_MODEL_LEN - prompt_tokens
    room = room if limit is None else min(limit, room)
    cut = words[:room]
    reason = "stop" if len(cut) == len(words) else "length"
    message = {"role": "assistant", "content": " ".join(cut)}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL_ID,
        "choices": [
            {"index": i, "message": message, "logprobs": None, "finish_reason": reason}
            for i in range(choices)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(cut) * choices,
            "total_tokens": prompt_tokens + len(cut) * choices,
        },
    }


def answer(turns: list[Turn]) -> str:
    """The describer's words for a conversation that ends with a user's question."""
    asked = [t for t in turns if t.role == "user"]
    if not asked:
        return "Please ask a question about a medical image."
    modality = next((m for t in reversed(asked) if (m := modality_of(t.text))), None)
    if modality is None:
        return "I can describe skin lesion, chest X-ray and colonoscopy images only."
    images = [image for turn in turns for image in turn.images]
    step = step_of(asked[-1].text, bool(images))
    if step != 2 and not images:
        return "No image was given, so no distinct lesion is seen."
    about = attributes_of(asked[-1].text)
    return describe(images[-1] if step != 2 else None, modality, step, about)


def modality_of(text: str) -> str | None:
    """The modality that a question's words name most often, or None."""
    low = text.lower()
    hits = {m: sum(low.count(word) for word in words) for m, words in _MODALITY_WORDS.items()}
    best = max(hits, key=lambda m: hits[m])
    return best if hits[best] else None


def step_of(text: str, with_image: bool) -> int:
    """Which of the three questions a text is: 1 (observe), 2 (features in general), 3 (concise)."""
    low = text.lower()
    if "concise" in low or "based on this image" in low:
        return 3
    if "specific aspects" in low or not with_image:
        return 2
    return 1


def attributes_of(text: str) -> tuple[str, ...]:
    """The attributes that a question names; all where it names none."""
    named = tuple(
        name for name, words in _ATTRIBUTE_WORDS.items() if re.search(rf"\b({words})\b", text.lower())
    )
    return named or tuple(_ATTRIBUTE_WORDS)


# ── validation ──────────────────────────────────────────────────────────────────────────────────


def _whole(request: dict[str, Any], key: str, low: int, high: int) -> int | None:
    value = request.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_request(f"{key}: Input should be a valid integer", key)
    if not low <= value <= high:
        raise bad_request(f"{key} must be between {low} and {high}, got {value}.", key)
    return value


def _limit(request: dict[str, Any]) -> int | None:
    newer = _whole(request, "max_completion_tokens", 1, MAX_MODEL_LEN)
    return newer if newer is not None else _whole(request, "max_tokens", 1, MAX_MODEL_LEN)


def _turns(messages: object) -> list[Turn]:
    if messages is None:
        raise bad_request("messages: Field required", "messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages: Input should be a non-empty list", "messages")
    turns = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, dict):
            raise bad_request(f"{where}: Input should be a valid dictionary", "messages")
        role = message.get("role")
        if role not in _ROLES:
            raise bad_request(f"{where}.role: Unexpected message role: {role!r}", "messages")
        turns.append(Turn(role, *_content(message.get("content"), where)))
    return turns


def _content(content: object, where: str) -> tuple[str, tuple[NDArray[np.uint8], ...]]:
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        raise bad_request(f"{where}.content: Input should be a string or a list", "messages")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise bad_request(f"{where}.content.text: Field required", "messages")
            texts.append(part["text"])
        elif kind == "image_url":
            link = part.get("image_url")
            url = link.get("url") if isinstance(link, dict) else None
            if not isinstance(url, str):
                raise bad_request(f"{where}.content.image_url.url: Field required", "messages")
            images.append(decode_image(url))
        else:
            raise bad_request(f"{where}.content: Unknown part type: {kind!r}", "messages")
    return "\n".join(texts), tuple(images)


def decode_image(url: str) -> NDArray[np.uint8]:
    """The image of a data: URL, uint8 [H, W, 3], as a viewer shows it (vap.datasets.modes).

    Raises:
        ChatError: 400 for bad base64, not an image, truncated or a strip; 500 for other URLs,
            which are never fetched.
    """
    if not url.startswith("data:"):
        raise ChatError(500, "Only data: URLs of images can be read.", "InternalServerError")
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise bad_request("Only base64 data URLs are supported for now.")
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"Invalid base64-encoded string: {error}") from error
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            if max(opened.size) > MAX_ASPECT * min(opened.size):
                raise bad_request(f"absolute aspect ratio must be smaller than {MAX_ASPECT}")
            return np.asarray(as_rgb(opened, raw)[0])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise bad_request(f"cannot identify image file: {error}") from error
