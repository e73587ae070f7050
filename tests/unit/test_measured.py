"""The measured describer: how often it sees what is there, what it says, and its HTTP protocol."""

import base64
import io
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from vap.captioning.describer_chat import MAX_MODEL_LEN, MODEL_ID, attributes_of, modality_of, step_of
from vap.captioning.describer_server import DescriberServer
from vap.captioning.measured import describe, measure
from vap.captioning.questions import load_questions
from vap.captioning.statements import stated
from vap.common.errors import VapError
from vap.datasets.attributes import MODALITIES, VOCABULARY
from vap.datasets.phantom import list_samples, load_spec, render

RAW = Path(__file__).resolve().parents[2] / "data" / "raw"
Q1 = (
    "You are an AI visual assistant observing a skin lesion image. Describe the information you "
    "observe from the image without providing any conclusions."
)
Q2 = (
    "Skin lesions may present with diverse shapes, colors, sizes, and texture features. Can you "
    "provide the specific aspects of these features and how they manifest in different ways?"
)
Q3 = (
    "Based on this image itself, please describe it shortly and concisely, according to the shape, "
    "color, size, and texture of the lesion and skin background."
)

# Least share of phantoms on which an attribute is measured as drawn.
ACCURACY = {
    "phantom-isic2018": {"shape": 0.80, "color": 0.85, "size": 0.85, "texture": 0.72, "skin": 0.9,
                         "hair": 0.8, "frame": 0.95},
    "phantom-isic2019": {"shape": 0.75, "color": 0.82, "size": 0.82, "texture": 0.68, "skin": 0.9,
                         "hair": 0.8, "frame": 0.95},
    "phantom-chestxray14": {"shape": 0.58, "color": 0.75, "size": 0.66, "texture": 0.57,
                            "side": 0.8, "zone": 0.65, "heart": 0.85, "lungs": 0.85,
                            "exposure": 0.85},
    "phantom-colonoscopy": {"shape": 0.75, "color": 0.9, "size": 0.82, "texture": 0.8,
                            "mucosa": 0.9, "folds": 0.8, "lumen": 0.9, "highlights": 0.85},
}  # fmt: skip


@pytest.mark.parametrize("name", ACCURACY)
def test_attributes_are_measured_as_drawn(name):
    spec = load_spec(RAW / name / "phantom.yaml")
    samples = list_samples(spec, 11)[::6]
    assert len(samples) >= 150
    found = [measure(render(spec.modality, s, 64), spec.modality) for s in samples]
    for key, least in ACCURACY[name].items():
        truth = [s.attributes[key] for s in samples]
        score = np.mean([f.get(key) == t for f, t in zip(found, truth, strict=True)])
        assert score >= least, f"{key}: {score:.2f}"
        if key in ("shape", "color", "size"):
            assert score > Counter(truth).most_common(1)[0][1] / len(truth) + 0.15


def pictures():
    rng = np.random.default_rng(0)
    yield np.zeros((64, 64, 3), np.uint8)
    yield np.full((64, 64, 3), 255, np.uint8)
    yield np.full((1, 1, 3), 7, np.uint8)
    yield rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    yield rng.integers(0, 256, (7, 300, 3)).astype(np.uint8)
    yield rng.integers(0, 256, (90, 33)).astype(np.uint8)
    yield rng.integers(0, 256, (40, 40, 4)).astype(np.uint8)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    yield np.repeat(np.repeat(ramp[None, :, None], 64, 0), 3, 2)
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = (200, 120, 110)
    yield half


@pytest.mark.parametrize("modality", MODALITIES)
def test_odd_images_are_described_honestly(modality):
    for image in pictures():
        for key, value in measure(image, modality).items():
            assert value in VOCABULARY[modality][key]
        for step in (1, 3):
            text = describe(image, modality, step)
            assert text.endswith(".")
            assert "None" not in text
    assert "no distinct lesion" in describe(np.zeros((64, 64, 3), np.uint8), modality, 3).lower()


@pytest.mark.parametrize("name", ["phantom-isic2018", "phantom-chestxray14", "phantom-colonoscopy"])
def test_captions_are_short_deterministic_and_discriminative(name):
    spec = load_spec(RAW / name / "phantom.yaml")
    images = [render(spec.modality, s, 64) for s in list_samples(spec, 2)[::25]]
    captions = [describe(image, spec.modality, 3) for image in images]
    assert captions == [describe(image, spec.modality, 3) for image in images]
    assert len(set(captions)) > 0.9 * len(captions)
    seen = [c for c in captions if not c.startswith("No distinct")]
    assert len(seen) > 0.85 * len(captions)
    assert all(15 <= len(c.split()) <= 30 and c.count(".") == 1 for c in seen)
    low = " ".join(captions).lower()
    assert not any(label.lower() in low.split() for label in spec.classes)


def test_describe_refuses_what_it_cannot_answer():
    image = np.zeros((64, 64, 3), np.uint8)
    for bad in ((image, "mri", 1), (image, "dermoscopy", 4), (None, "dermoscopy", 3),
                (image.astype(float), "dermoscopy", 1)):  # fmt: skip
        with pytest.raises(VapError):
            describe(*bad)


# ── over HTTP ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server():
    with DescriberServer() as running:
        yield running


def picture(modality="dermoscopy", name="phantom-isic2018", number=3):
    spec = load_spec(RAW / name / "phantom.yaml")
    return render(modality, list_samples(spec, 0)[number], 64)


def data_url(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def ask(server, messages, **extra):
    body = {"model": MODEL_ID, "messages": messages} | extra
    return httpx.post(f"{server.url}/chat/completions", json=body, timeout=20)


def user(*parts):
    return {"role": "user", "content": [p if isinstance(p, dict) else
                                        {"type": "text", "text": p} for p in parts]}  # fmt: skip


def test_health_and_models(server):
    health = httpx.get(server.url.removesuffix("/v1") + "/health")
    assert (health.status_code, health.content) == (200, b"")
    card = httpx.get(f"{server.url}/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == (MODEL_ID, MAX_MODEL_LEN)
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    assert httpx.get(f"{server.url}/chat/completions").status_code == 405


def test_the_three_questions(server):
    image = picture()
    first = user(part(data_url(image)), Q1)
    t1 = ask(server, [first]).json()["choices"][0]
    assert t1["finish_reason"] == "stop"
    assert t1["message"]["content"] == describe(image, "dermoscopy", 1)
    t2 = ask(server, [user(Q2)]).json()["choices"][0]["message"]["content"]
    assert t2 == describe(None, "dermoscopy", 2)
    talk = [first, {"role": "assistant", "content": t1["message"]["content"]}, user(Q2),
            {"role": "assistant", "content": t2}, user(Q3)]  # fmt: skip
    reply = ask(server, talk, temperature=0.0, max_tokens=200).json()
    assert reply["choices"][0]["message"]["content"] == describe(image, "dermoscopy", 3)
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_modality_and_step_come_from_the_words():
    assert modality_of("observing a chest X-ray image") == "chest_xray"
    assert modality_of("Polyps in colonoscopy images may present") == "colonoscopy"
    assert modality_of("the lesion and skin background") == "dermoscopy"
    assert modality_of("what is this?") is None
    assert [step_of(q, True) for q in (Q1, Q2, Q3)] == [1, 2, 3]
    assert step_of("Tell me about lungs", False) == 2


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_question_3_leaves_out_is_not_described(modality):
    name = {"dermoscopy": "phantom-isic2018", "chest_xray": "phantom-chestxray14"}.get(
        modality, "phantom-colonoscopy"
    )
    image = picture(modality, name)
    whole = describe(image, modality, 3)
    seen = stated(whole, modality)
    for attribute in ("shape", "color", "size", "texture"):
        question = load_questions(modality, 1, [attribute]).question3
        about = attributes_of(question)
        assert attribute not in about
        assert len(about) == 3
        said = stated(describe(image, modality, 3, about), modality)
        assert said == {key: value for key, value in seen.items() if key != attribute}
    assert attributes_of(load_questions(modality, 2).question3) == ("shape", "color", "size", "texture")
    assert describe(image, modality, 3, attributes_of("Please describe it concisely.")) == whole


def test_max_tokens_cuts_and_says_so(server):
    reply = ask(server, [user(Q2)], max_tokens=5).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert len(reply["choices"][0]["message"]["content"].split()) == 5
    assert reply["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("messages", "extra", "status"),
    [
        ([user(part("data:image/png;base64,@@@"), Q1)], {}, 400),
        ([user(part("data:image/png;base64,aGVsbG8="), Q1)], {}, 400),
        ([user(part(data_url(np.zeros((40, 40, 3), np.uint8))[:-40]), Q1)], {}, 400),
        ([user(part(data_url(np.zeros((1, 900, 3), np.uint8))), Q1)], {}, 400),
        ([user(part("file:///etc/hostname"), Q1)], {}, 500),
        ([user({"type": "image_url"}, Q1)], {}, 400),
        ([user({"type": "sound"}, Q1)], {}, 400),
        ([{"role": "nobody", "content": "hello"}], {}, 400),
        ([], {}, 400),
        (None, {}, 400),
        ([user(Q2)], {"max_tokens": 10**6}, 400),
        ([user(Q2)], {"max_tokens": "many"}, 400),
        ([user("word " * MAX_MODEL_LEN)], {}, 400),
        ([user(Q2)], {"model": "gpt"}, 404),
    ],
)
def test_bad_requests_are_refused_as_vllm_does(server, messages, extra, status):
    reply = ask(server, messages, **extra)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status


def test_a_body_that_is_not_json(server):
    reply = httpx.post(f"{server.url}/chat/completions", content=b"{")
    assert reply.status_code == 400
    assert "JSON" in reply.json()["error"]["message"]


def test_one_connection_serves_many_requests_and_close_ends_it():
    running = DescriberServer()
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{running.url}/models").status_code == 200
        running.close()
        running.close()
        with pytest.raises(httpx.TransportError):
            client.get(f"{running.url}/models", timeout=2)


def test_a_taken_port_is_one_clear_line(server):
    with pytest.raises(VapError, match="port"):
        DescriberServer(server.port)
