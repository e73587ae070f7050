"""Text encoders against the libraries themselves: MiniLM by transformers, a small BiomedCLIP by open_clip."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vap.common.errors import VapError
from vap.prompts.encoders import TextEncoder, load_encoder
from vap.prompts.places import locate
from vap.publishing.publish import copy_encoder

BIOMEDCLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
LONG = "a large oval brown lesion with an irregular border on fair skin without hair " * 4
TEXTS = ["", "a small round pink lesion", LONG, "Ulcère, érosion — 12 %"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sockets raise, the hub's client knows that it is offline, and its cache is empty."""
    import huggingface_hub.constants as constants

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ── MiniLM ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_encoder("minilm", 48)


def test_minilm_states_are_transformers(minilm: TextEncoder) -> None:
    """One text at a time, no padding, called as the library's own pages do."""
    from transformers import AutoModel, AutoTokenizer

    folder = locate("minilm").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    for text, found in zip(TEXTS, minilm.encode(TEXTS), strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=48)
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state[0].numpy()
        assert found.tokens.shape == expected.shape
        np.testing.assert_allclose(found.tokens, expected, atol=1e-5)
        np.testing.assert_allclose(found.pooled, expected.mean(0), atol=1e-5)


def test_minilm_lengths(minilm: TextEncoder) -> None:
    lengths = [len(encoded.tokens) for encoded in minilm.encode(TEXTS)]
    assert lengths[0] == 2  # [CLS] [SEP]
    assert lengths[1] == 8  # a small round pink les ##ion
    assert lengths[2] == 48
    assert minilm.width == 384
    whole = [encoded.whole for encoded in minilm.encode(TEXTS)]
    assert whole[:2] == [2, 8]
    assert whole[2] > 48
    minilm.max_tokens = 5
    try:
        assert [len(e.tokens) for e in minilm.encode(TEXTS)] == [2, 5, 5, 5]
        assert [e.whole for e in minilm.encode(TEXTS)] == whole
    finally:
        minilm.max_tokens = 48


# ── a BiomedCLIP-shaped model ───────────────────────────────────────────────────────────────────


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    edit(config["model_cfg"]["text_cfg"])
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that open_clip itself can load: hf_model_name is that folder. A tiny ViT, a tiny BERT."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, BertConfig

    folder = tmp_path_factory.mktemp("biomedclip")
    AutoTokenizer.from_pretrained(locate("minilm").folder).save_pretrained(folder)
    BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(folder)
    text = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }
    vision = {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "image_size": 160,
    }
    model = {"embed_dim": 16, "vision_cfg": vision | {"timm_proj": "linear"}, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    weights = {key: value.contiguous() for key, value in made.state_dict().items()}
    assert {key.split(".")[0] for key in weights} == {"visual", "text", "logit_scale"}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def folder(direct: Path, tmp_path: Path) -> Path:
    """The same files with the published names: hf_model_name is a name on the hub."""
    copy = Path(shutil.copytree(direct, tmp_path / "biomedclip"))
    edit_config(copy, lambda text: text.update(hf_model_name=BERT, hf_tokenizer_name=BERT))
    return copy


@pytest.fixture(scope="module")
def expected(direct: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(token states without padding, text embedding) of TEXTS, by open_clip itself."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{direct}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{direct}")(TEXTS)
    assert ids.shape == (len(TEXTS), 256)
    model.text.output_tokens = True
    with torch.no_grad():
        pooled, states = model.encode_text(ids)
    return [(s[i != 0], p) for s, i, p in zip(states, ids, pooled, strict=True)]


def assert_open_clips(name: str, expected: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    encoder = load_encoder(name, 256)
    assert encoder.width == 32
    for found, (states, pooled) in zip(encoder.encode(TEXTS), expected, strict=True):
        assert torch.equal(torch.from_numpy(found.tokens), states)
        assert torch.equal(torch.from_numpy(found.pooled), pooled)
        assert found.pooled.shape == (16,)
        assert found.whole == len(states)
    short = load_encoder(name, 5)
    assert [e.whole for e in short.encode(TEXTS)] == [len(states) for states, _ in expected]


def with_positions(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}


def old_keys(folder: Path) -> None:
    def rename(text: dict[str, Any]) -> None:
        text["proj"], text["pooler_type"] = text.pop("hf_proj_type"), text.pop("hf_pooler_type")

    edit_config(folder, rename)


def as_bin(folder: Path) -> None:
    from safetensors.torch import load_file

    file = folder / "open_clip_model.safetensors"
    torch.save(with_positions(load_file(file)), folder / "open_clip_pytorch_model.bin")
    file.unlink()


def with_position_ids(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "open_clip_model.safetensors"
    save_file(with_positions(load_file(file)), file)


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, old_keys, as_bin, with_position_ids])
def test_states_are_open_clips(folder: Path, expected: Any, change: Callable[[Path], None]) -> None:
    change(folder)
    assert_open_clips(str(folder), expected)


def cached(cache: Path, repo: str, files: list[Path]) -> None:
    """Put files into the hub's cache as its client lays them out."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    (place / "snapshots/abc").mkdir(parents=True)
    for file in files:
        shutil.copy(file, place / "snapshots/abc" / file.name)


def test_the_hubs_name_is_found_in_the_local_cache(folder: Path, expected: Any, no_network: Path) -> None:
    files = sorted(folder.iterdir())
    bert = [file for file in files if file.name == "config.json"]
    cached(no_network, BIOMEDCLIP.removeprefix("hf-hub:"), [file for file in files if file not in bert])
    cached(no_network, BERT, bert)
    assert_open_clips(BIOMEDCLIP, expected)
    assert locate(BIOMEDCLIP).revision == locate(str(folder)).revision


def test_what_the_cache_lacks_is_fetched(
    folder: Path, tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a stand-in for the hub: the text model's config from its own repository, one file of weights."""
    import fnmatch

    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    shutil.copy(folder / "open_clip_model.safetensors", folder / "open_clip_pytorch_model.bin")
    fetched: list[str] = []

    def snapshot_download(
        repo: str, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        place = tmp_path / "hub" / repo.replace("/", "--")
        if local_files_only and not place.is_dir():
            raise LocalEntryNotFoundError("not cached")
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            here = (file.name == "config.json") == (repo == BERT)
            if (
                not local_files_only
                and here
                and any(fnmatch.fnmatch(file.name, p) for p in allow_patterns or [])
            ):
                shutil.copy(file, place / file.name)
                fetched.append(file.name)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_open_clips(BIOMEDCLIP, expected)
    assert sorted(fetched) == [
        "config.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    fetched.clear()
    assert_open_clips(BIOMEDCLIP, expected)
    assert fetched == []


def test_only_the_text_tower_is_loaded(folder: Path) -> None:
    encoder: Any = load_encoder(str(folder), 48)
    keys = encoder.tower.state_dict().keys()
    assert all(key.split(".")[0] in ("transformer", "proj") for key in keys)
    assert [len(e.tokens) for e in encoder.encode(TEXTS)][:3] == [2, 8, 48]


def test_a_bundle_has_the_text_tower_alone_and_no_pickle(folder: Path, expected: Any, tmp_path: Path) -> None:
    as_bin(folder)
    copied = copy_encoder(locate(str(folder)), tmp_path / "copied")
    assert [file.name for file in copied.weights] == ["open_clip_model.safetensors"]
    assert not [file for file in (tmp_path / "copied").iterdir() if file.suffix == ".bin"]
    assert copied.weights[0].stat().st_size < 0.9 * locate(str(folder)).weights[0].stat().st_size
    shutil.rmtree(folder)
    assert_open_clips(str(tmp_path / "copied"), expected)


def test_the_revision_is_of_the_weights(folder: Path) -> None:
    before = load_encoder(str(folder), 48).revision
    assert len(before) == 16
    with_position_ids(folder)
    assert load_encoder(str(folder), 48).revision != before


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (["open_clip_model.safetensors"], "no open_clip_model.safetensors"),
        (["config.json"], f"no config.json of its text model {BERT}"),
        (["tokenizer.json", "vocab.txt"], "no tokenizer.json"),
        (["config.json", "open_clip_model.safetensors"], r"no open_clip_model.safetensors.*no config.json"),
    ],
)
def test_an_absent_file_is_one_line(folder: Path, gone: list[str], told: str) -> None:
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(VapError, match=told) as caught:
        load_encoder(str(folder), 48)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_without_network_and_cache_the_files_are_named() -> None:
    with pytest.raises(VapError) as caught:
        load_encoder(BIOMEDCLIP, 48)
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "tokenizer.json",
        "config.json",
        BERT,
    ):
        assert part in line
    assert "weights/BiomedCLIP" in line


def test_too_many_tokens_are_one_line(folder: Path) -> None:
    with pytest.raises(VapError, match=r"found encode\.max_tokens: 257; expected 256 or fewer"):
        load_encoder(str(folder), 257)
    with pytest.raises(VapError, match="513; expected 512 or fewer"):
        load_encoder("minilm", 513)


def cut(folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def other_width(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))


def junk(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"junk" * 100)


@pytest.mark.parametrize("damage", [cut, other_width, junk])
def test_damaged_files_are_one_line(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(VapError, match="no loadable open_clip model") as caught:
        load_encoder(str(folder), 48)
    assert "\n" not in str(caught.value)


def test_a_config_of_another_kind_is_one_line(folder: Path) -> None:
    edit_config(folder, lambda text: text.pop("hf_model_name"))
    with pytest.raises(VapError, match="no hf_model_name"):
        load_encoder(str(folder), 48)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(VapError, match="no open_clip config"):
        load_encoder(str(folder), 48)


# ── any Hugging Face encoder ────────────────────────────────────────────────────────────────────


def test_a_name_on_the_hub_is_found_in_the_local_cache(no_network: Path, minilm: TextEncoder) -> None:
    files = [file for file in locate("minilm").folder.iterdir() if file.is_file()]
    cached(no_network, "sentence-transformers/all-MiniLM-L6-v2", files)
    found = load_encoder("sentence-transformers/all-MiniLM-L6-v2", 48)
    assert found.revision == minilm.revision
    np.testing.assert_array_equal(found.encode(TEXTS)[2].tokens, minilm.encode(TEXTS)[2].tokens)


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(
        VapError, match=r"config.json, model.safetensors, tokenizer.json .* of weights/absent"
    ):
        load_encoder("weights/absent", 48)


def test_the_encoder_half_of_an_encoder_decoder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5Model

    config = T5Config(d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3, vocab_size=30522)
    T5Model(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(locate("minilm").folder).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), 48)
    assert [e.tokens.shape for e in encoder.encode(TEXTS[:2])] == [(2, 24), (8, 24)]


def test_a_folder_that_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"no config.json in that folder") as caught:
        load_encoder(str(tmp_path / "absent"), 48)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VapError, match="no loadable text encoder"):
        load_encoder(str(tmp_path), 48)


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(locate("minilm").folder, tmp_path / "minilm"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(VapError, match="no loadable text encoder"):
        load_encoder(str(copy), 48)
