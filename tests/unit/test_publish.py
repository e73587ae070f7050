"""Trained models outside of the project: bundles and cards, the same bytes elsewhere, images in folders."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from toy import CLASSES, LATENTS, PREPARED, PROJECT, SIDE, settings, write_latents, write_prepared

from vap import Samples, VAPDiffusion, prompt_bank
from vap.autoencoders.autoencoder import Linear
from vap.autoencoders.linear import LinearNet
from vap.common.artifacts import file_sha256
from vap.common.errors import VapError
from vap.generators import train
from vap.metrics import evaluate
from vap.params import parse
from vap.prompts import encode
from vap.prompts.places import locate
from vap.publishing.demo import page, serve
from vap.publishing.demo import settings as settings_of_page
from vap.publishing.generate import generate
from vap.publishing.images import export_images
from vap.publishing.publish import publish
from vap.sampling import sample
from vap.sampling.bundle import read_bundle
from vap.sampling.draw import draw

METHODS = ["stylegan", "cbdm", "ldm", "dit", "uvit", "vap"]
ALL = [*METHODS, "vap_without_pcm"]
TEXT = "a dark round mole on pale skin"
ENCODER = Path("weights/tiny")


def write_encoder(folder: Path) -> None:
    """A tiny BERT whose weights are pickled."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(locate("minilm").folder).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=30522, max_position_embeddings=32, **sizes))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def write_captions(path: Path) -> None:
    """One text an image; images 0 and 2 share one, the last has none."""
    texts = [f"a {CLASSES[i % 2]} of kind {0 if i == 2 else i}" for i in range(13)]
    path.parent.mkdir(parents=True)
    table = pa.table({"id": [f"i{i:02d}" for i in range(14)], "t_mix": [*texts, None]})
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """Every method trained on toy images, in a project of its own; the working folder of these tests."""
    here, home = Path.cwd(), tmp_path_factory.mktemp("project")
    threads = torch.get_num_threads()
    os.chdir(home)
    kinds = {"images": METHODS[:2], "latents": METHODS[2:5], "prompts": ["vap"]}
    changes = {"sample__n": 12, "sample__steps": 3, "sample__batch_size": 5, "encode__max_tokens": 12}
    changes |= {"encode__encoder": str(ENCODER), "evaluate__n": 8, "ablation__without": ["vap_without_pcm"]}
    changes |= {"evaluate__bootstrap": 4, "evaluate__neighbours": 2, "evaluate__isc_splits": 2}
    params = settings(methods=METHODS, learns_from=kinds, **changes)
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    write_latents(LATENTS)
    write_prepared(PREPARED)
    write_captions(Path("data/captions/own.parquet"))
    write_encoder(ENCODER)
    encode.run(params, "own")
    torch.manual_seed(0)
    Linear(LinearNet(SIDE // 4, 2)).save(Path("data/autoencoders/own"))
    for method in ALL:
        train.run(params, "own", method)
    yield home, params
    os.chdir(here)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def params(project: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(project[0])
    return project[1]


@pytest.fixture
def bundle(params: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A method's bundle, in a folder of its own."""

    def make(method: str) -> Path:
        publish(params, "own", method, tmp_path / method)
        return tmp_path / method

    return make


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


# ── another machine ─────────────────────────────────────────────────────────────────────────────

FIVE_LINES = """
from vap import VAPDiffusion
pipe = VAPDiffusion.from_pretrained("given")
drawn = pipe("scar", TEXT, n=6, seed=3)
for i, image in enumerate(drawn.images):
    image.save(f"{i}.png")
"""


@pytest.mark.parametrize(
    ("method", "text"), [("uvit", None), ("stylegan", None), ("vap", TEXT), ("vap", None)]
)
def test_a_bundle_draws_the_same_bytes_elsewhere(
    params: Any, bundle: Callable[[str], Path], tmp_path: Path, method: str, text: str | None
) -> None:
    draw(params, "own", method, "scar", text, 6, Path("drawn.png"), 3)
    expected = Path("drawn.png").read_bytes()
    away, home = tmp_path / "away", tmp_path / "home"
    away.mkdir()
    home.mkdir()
    shutil.move(bundle(method), away / "given")
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-c", FIVE_LINES.replace("TEXT", repr(text)))
    side = Image.open("drawn.png").height
    grid = np.asarray(Image.open("drawn.png"))
    for i in range(6):
        found = np.asarray(Image.open(away / f"{i}.png"))
        assert found.shape == (side, side, 3)
        assert np.array_equal(found, grid[:, i * side : (i + 1) * side])
    words = ["--text", text] if text else []
    run(
        *(sys.executable, "-m", "vap", "generate", "given", "--class", "scar"),
        *words,
        *("-n", "6", "--seed", "3"),
    )
    assert (away / "out/grid.png").read_bytes() == expected
    record = json.loads((away / "out/images.json").read_text())
    assert record["bundle"]["sha256"] == file_sha256(away / "given/config.json")
    assert [entry["index"] for entry in record["images"]] == list(range(6))
    assert {(entry["class"], entry["seed"]) for entry in record["images"]} == {("scar", 3)}
    assert all((entry["text"] is None) == (method != "vap") for entry in record["images"])
    assert all((away / "out" / entry["file"]).is_file() for entry in record["images"])


@pytest.mark.parametrize("method", ALL)
def test_a_bundle_of_every_method_has_no_pickle(bundle: Callable[[str], Path], method: str) -> None:
    folder = bundle(method)
    pipe = VAPDiffusion.from_pretrained(folder, device="cpu")
    assert pipe.classes == CLASSES
    assert pipe("mole", n=2).images[0].size == (SIDE, SIDE)
    assert pipe.card.startswith("---\n")
    assert (pipe.bank is None) == (not method.startswith("vap"))
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".arrow", ".md", ".txt"}
    assert files - {"README.md", "config.json"} == read_bundle(folder)["bundle"]["files"].keys()


def test_a_bundle_tells_no_images_name_nor_test_description(bundle: Callable[[str], Path]) -> None:
    pipe = VAPDiffusion.from_pretrained(bundle("vap"))
    assert pipe.bank is not None
    assert set(pipe.bank.row_of) == {f"{i:09d}" for i in range(11)}
    texts = pipe.bank.file.column("text")
    assert texts[0] == ""
    assert not any(text.endswith((" 11", " 12")) for text in texts)  # of the test images
    assert b"i03" not in pipe.bank.file.path.read_bytes()


def test_no_folder_of_this_machine_is_in_a_bundle(params: Any, tmp_path: Path) -> None:
    secret = tmp_path / "home/alice"
    secret.mkdir(parents=True)
    shutil.copy("results/models/own/uvit/model.safetensors", secret / "start.safetensors")
    data = yaml.safe_load(Path("params.yaml").read_text())
    data["method"]["uvit"]["train"]["start_from"] = str(secret / "start.safetensors")
    kept = Path("results/models/own/uvit")
    shutil.copytree(kept, tmp_path / "kept")
    try:
        train.run(parse(data), "own", "uvit")
        assert "alice" in (kept / "config.json").read_text()
        publish(parse(data), "own", "uvit", tmp_path / "bundle")
    finally:
        shutil.rmtree(kept)
        shutil.move(tmp_path / "kept", kept)
    for file in (tmp_path / "bundle").rglob("*"):
        assert file.is_dir() or b"alice" not in file.read_bytes(), file
    assert VAPDiffusion.from_pretrained(tmp_path / "bundle", device="cpu")("mole").images


def test_the_share_of_a_run_is_all_that_its_bundle_has(params: Any, tmp_path: Path) -> None:
    data = yaml.safe_load(Path("params.yaml").read_text())
    data["learns_from"]["prompts"] = ["vap", "vap_data10"]
    data["downstream"] |= {"sources": ["vap"], "generator_ratios": ["10"]}
    own = parse(data)
    train.run(own, "own", "vap_data10")
    publish(own, "own", "vap_data10", tmp_path / "share")
    there, here = (
        VAPDiffusion.from_pretrained(tmp_path / "share"),
        VAPDiffusion.of_run(own, "own", "vap_data10"),
    )
    assert there.bank is not None
    assert len(there.bank.row_of) == 2  # one image of each class
    found, expected = there(CLASSES, n=4, seed=5), here(CLASSES, n=4, seed=5)
    assert found.texts == expected.texts
    assert np.array_equal(pixels(found.images), pixels(expected.images))


# ── the object ──────────────────────────────────────────────────────────────────────────────────


def test_calls_are_shaped_as_diffusers_are(params: Any) -> None:
    pipe = VAPDiffusion.of_run(params, "own", "vap")
    drawn = pipe(["mole", "scar"], [TEXT, "a long scar"], n=3)
    assert drawn.labels == ["mole"] * 3 + ["scar"] * 3
    assert drawn.texts == [TEXT] * 3 + ["a long scar"] * 3
    assert drawn[0] is drawn.images
    assert drawn.seed == 0
    assert pipe("mole", [TEXT, "b"]).labels == ["mole", "mole"]
    alone = pipe("mole", TEXT, n=2)
    assert np.abs(pixels(alone.images).astype(int) - pixels(drawn.images)[:2]).max() <= 1  # rounding
    source = torch.Generator().manual_seed(1)
    first, second = pipe("mole", generator=source), pipe("mole", generator=source)
    assert first.seed != second.seed
    again = pipe("mole", seed=first.seed)
    assert np.array_equal(pixels(again.images), pixels(first.images))
    assert again.texts == first.texts


def test_what_a_call_changes_is_read_and_does_not_stay(params: Any, torch_settings: None) -> None:
    for method in ("uvit", "cbdm"):
        pipe = VAPDiffusion.of_run(params, "own", method)
        plain = pixels(pipe("mole", n=4).images)
        for change in ({"guidance_scale": 6.0}, {"steps": 9}):
            assert not np.array_equal(pixels(pipe("mole", n=4, **change).images), plain)
        assert np.array_equal(pixels(pipe("mole", n=4).images), plain)
    pipe.to(dtype=torch.bfloat16)
    assert pipe.generator.settings.precision == "bf16"


def test_a_sampler_of_the_methods_own_takes_the_steps(params: Any) -> None:
    own = {"sampler": "ddpm", "order": 1, "spacing": "uniform", "variance": "beta", "steps": 5}
    data = yaml.safe_load(Path("params.yaml").read_text())
    data["method"]["cbdm"]["sample"]["sampler"] = own
    generator = VAPDiffusion.of_run(parse(data), "own", "cbdm").generator
    assert generator.told()["sampler"] == own
    assert generator.varied(steps=2).told()["sampler"] == own | {"steps": 2}


@pytest.mark.parametrize(
    ("method", "call", "told"),
    [
        ("uvit", {"labels": "wart"}, "class: found 'wart'; expected one of mole, scar"),
        ("uvit", {"labels": []}, "class: found none; expected one of mole, scar"),
        ("uvit", {"labels": "mole", "n": 0}, "n: found 0; expected 1 or more"),
        (
            "uvit",
            {"labels": "mole", "texts": TEXT},
            "uvit: found one; expected none: the method uses the class",
        ),
        ("stylegan", {"labels": "mole", "texts": TEXT}, "expected none: the method uses the class alone"),
        ("stylegan", {"labels": "mole", "steps": 5}, "steps: found 5 for stylegan; expected none"),
        ("stylegan", {"labels": "mole", "guidance_scale": 2.0}, "guidance_scale: found 2.0 for stylegan"),
        ("uvit", {"labels": "mole", "steps": 0}, "steps: found 0; expected 1 to 1000"),
        ("uvit", {"labels": "mole", "steps": 1001}, "steps: found 1001; expected 1 to 1000"),
        ("uvit", {"labels": "mole", "guidance_scale": -1.0}, "guidance_scale: found -1.0"),
        ("uvit", {"labels": "mole", "guidance_scale": float("nan")}, "guidance_scale: found nan"),
        ("uvit", {"labels": "mole", "seed": -1}, "seed: found -1; expected 0 or more"),
        (
            "uvit",
            {"labels": "mole", "seed": 1, "generator": torch.Generator()},
            "seed and generator: found both",
        ),
        ("uvit", {"labels": "mole", "device": "abacus"}, "device: found 'abacus'; expected auto"),
        (
            "uvit",
            {"labels": "mole", "device": "cuda:99"},
            "device: found cuda:99; expected one that is there",
        ),
        ("uvit", {"labels": "mole", "dtype": "fp8"}, "dtype: found fp8; expected fp32 or bf16"),
        ("vap", {"labels": "mole", "texts": ""}, "text: found an empty one"),
        ("vap", {"labels": "mole", "texts": ["a", None]}, "text: found a NoneType"),
        ("vap", {"labels": CLASSES, "texts": ["a", "b", "c"]}, "labels: found 2 of them; expected 1, or 3"),
        (
            "vap",
            {"labels": [*CLASSES, "mole"], "texts": ["a", "b"]},
            "texts: found 2 of them; expected 1, or 3",
        ),
    ],
)
def test_a_wrong_call_is_one_line(params: Any, method: str, call: dict[str, Any], told: str) -> None:
    pipe = VAPDiffusion.of_run(params, "own", method)
    with pytest.raises(VapError, match=told):
        pipe(**call)


def test_what_it_sets_in_torch_is_put_back(params: Any, bundle: Callable[[str], Path]) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    VAPDiffusion.from_pretrained(bundle("uvit"))("mole")
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


# ── damaged bundles ─────────────────────────────────────────────────────────────────────────────


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: shutil.rmtree(f), "no such folder; expected a folder that `vap publish` wrote"),
        (lambda f: (f / "config.json").unlink(), "found no config.json of a bundle"),
        (lambda f: (f / "config.json").write_text("{"), "found no config.json of a bundle"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: found no such file"),
        (lambda f: (f / "prompts.arrow").write_bytes(b"x"), "prompts.arrow: found sha256 2d711642b726"),
        (lambda f: edit(f, lambda c: c["bundle"].update(format=2)), "found bundle.format 2; expected 1"),
        (
            lambda f: edit(f, lambda c: c.update(method="plain")),
            "found method 'plain'; expected one of this vap",
        ),
        (lambda f: edit(f, lambda c: c["bundle"].pop("files")), "found no bundle.files"),
        (lambda f: edit(f, lambda c: c["bundle"].pop("sample")), "no settings of a bundle .KeyError"),
        (lambda f: edit(f, lambda c: c["bundle"]["sample"].update(steps=0)), "bundle.sample.steps: found 0"),
        (lambda f: edit(f, lambda c: c["model"].update(width=20)), "model.safetensors"),
    ],
)
def test_a_damaged_bundle_is_one_line(
    bundle: Callable[[str], Path], damage: Callable[[Path], None], told: str
) -> None:
    folder = bundle("vap")
    damage(folder)
    with pytest.raises(VapError, match=told):
        VAPDiffusion.from_pretrained(folder)


def test_the_card_may_be_edited(bundle: Callable[[str], Path]) -> None:
    folder = bundle("uvit")
    (folder / "README.md").write_text("mine")
    assert VAPDiffusion.from_pretrained(folder).card == "mine"


def test_what_is_there_is_not_overwritten(params: Any, tmp_path: Path) -> None:
    other, target = tmp_path / "other", tmp_path / "bundle"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(VapError, match="found a folder of other things"):
            publish(params, "own", "uvit", other, force=force)
        with pytest.raises(VapError, match="found a file or a link"):
            publish(params, "own", "uvit", other / "thesis.txt", force=force)
    publish(params, "own", "uvit", target)
    before = file_sha256(target)
    with pytest.raises(VapError, match=r"found a bundle; .* say --force"):
        publish(params, "own", "cbdm", target)
    assert file_sha256(target) == before
    publish(params, "own", "uvit", target, force=True)
    assert file_sha256(target) == before
    shutil.rmtree("data/autoencoders/own.away", ignore_errors=True)
    os.rename("data/autoencoders/own", "data/autoencoders/own.away")
    try:
        with pytest.raises(VapError, match="run the latents stage"):
            publish(params, "own", "uvit", target, force=True)
    finally:
        os.rename("data/autoencoders/own.away", "data/autoencoders/own")
    assert file_sha256(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


# ── the card ────────────────────────────────────────────────────────────────────────────────────


def test_a_card_without_metrics_says_why(bundle: Callable[[str], Path]) -> None:
    text = (bundle("dit") / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "vap-diffusion"
    assert head["datasets"] == ["own"]
    assert "model-index" not in head
    assert "not evaluated: there is no results/metrics/own/dit-seen.json" in text
    assert "| mole | 6 |" in text
    assert "seed 0" in text


def test_a_card_has_the_metrics_of_these_weights_alone(params: Any, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard
    from safetensors.torch import load_file, save_file

    sample.run(params, "own", "vap", "seen")
    evaluate.run(params, "own", "vap", "seen")
    publish(params, "own", "vap", tmp_path / "a", licence="mit")
    card = ModelCard.load(tmp_path / "a/README.md")
    metrics = json.loads(Path("results/metrics/own/vap-seen.json").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    assert card.data.license == "mit"
    assert found["frechet_distance"].metric_value == pytest.approx(metrics["fid"], abs=1e-6)
    assert "fid" not in found  # these are not Inception's features
    assert found["frechet_distance"].metric_args["spread"] == (
        f"95 % interval {metrics['fid_low']:.3f} to {metrics['fid_high']:.3f}"
    )
    other = params.model_copy(update={"sample": params.sample.model_copy(update={"steps": 4})})
    publish(other, "own", "vap", tmp_path / "c")
    assert "was drawn with other settings (steps)" in (tmp_path / "c/README.md").read_text()
    weights = Path("results/models/own/vap/model.safetensors")
    kept = weights.read_bytes()
    try:
        changed = {name: value * 1.01 for name, value in load_file(weights).items()}
        save_file(changed, weights)
        publish(params, "own", "vap", tmp_path / "b")
    finally:
        weights.write_bytes(kept)
    text = (tmp_path / "b/README.md").read_text()
    assert "model-index" not in text
    assert "was drawn from other weights" in text


# ── images and descriptions ─────────────────────────────────────────────────────────────────────


def test_images_in_folders_with_their_table(params: Any, tmp_path: Path) -> None:
    path = sample.run(params, "own", "vap", "seen")
    assert export_images("own", "vap", "seen", tmp_path / "images") == 12
    with (tmp_path / "images/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = Samples(path)
    assert len(rows) == len(found) == 12
    for i, row in enumerate(rows):
        image, number = found[i]
        assert row["file_name"] == f"{row['label']}/{i:06d}.png"
        assert (row["label"], row["text"]) == (CLASSES[number], found.texts[i])
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "images" / row["file_name"])), np.asarray(image)
        )
    with pytest.raises(VapError, match="found something there"):
        export_images("own", "vap", "seen", tmp_path / "images")
    with pytest.raises(VapError, match="no such file"):
        export_images("own", "dit", "seen", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_samples_are_a_torch_dataset(params: Any) -> None:
    path = sample.run(params, "own", "uvit", "seen")
    found = Samples(path, transform=lambda image: torch.from_numpy(np.array(image)))
    images, labels = next(iter(torch.utils.data.DataLoader(found, batch_size=4)))
    assert images.shape == (4, SIDE, SIDE, 3)
    assert labels.tolist() == found.targets[:4]
    assert found.texts == [None] * 12
    with pytest.raises(IndexError):
        found[12]
    real = Samples(PREPARED, split="train")
    assert (len(real), real.classes) == (11, CLASSES)
    assert real[1][1] == 1
    with pytest.raises(VapError, match="found no image of split val"):
        Samples(PREPARED, split="val")
    with pytest.raises(VapError, match="samples have no split"):
        Samples(path, split="train")
    with pytest.raises(VapError, match="a samples artefact"):
        Samples("data/prompts/own.arrow")


def test_the_bank_opens_in_two_lines(params: Any, bundle: Callable[[str], Path]) -> None:
    table = prompt_bank("data/prompts/own.arrow")
    assert table.column_names == ["row", "text", "label", "split", "images", "tokens"]
    first = table.to_pylist()[0]
    assert first == {
        "row": 1,
        "text": "a mole of kind 0",
        "label": "mole",
        "split": "train",
        "images": 2,
        "tokens": 7,
    }
    assert prompt_bank(bundle("vap") / "prompts.arrow").num_rows == 10


# ── the page ────────────────────────────────────────────────────────────────────────────────────


def test_a_page_without_its_library_is_one_line(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(VapError, match=r"found no gradio here; .* pip install 'vap-diffusion\[demo\]'"):
        serve(bundle("uvit"), 7860, "cpu")


@pytest.mark.parametrize("method", ["vap", "uvit", "stylegan"])
def test_the_page_draws_what_a_call_draws(bundle: Callable[[str], Path], method: str) -> None:
    gradio = pytest.importorskip("gradio")
    from gradio_client import Client

    pipe = VAPDiffusion.from_pretrained(bundle(method), device="cpu")
    blocks = page(pipe)
    launched = settings_of_page(gradio, 0) | {"server_port": None, "prevent_thread_lock": True}
    _, url, shared = blocks.launch(**launched)
    try:
        assert url.startswith("http://127.0.0.1:")
        assert not shared
        client = Client(url, verbose=False)
        found = client.predict("scar", TEXT, 3, 4, 2.0, 2, api_name="/draw")
        more = {} if method == "stylegan" else {"guidance_scale": 2.0, "steps": 2}
        expected = pipe("scar", TEXT if method == "vap" else None, 3, seed=4, **more)
        images = [Image.open(entry["image"]).convert("RGB") for entry in found]
        assert np.array_equal(pixels(images), pixels(expected.images))
        assert [entry["caption"] for entry in found] == [TEXT if method == "vap" else "scar"] * 3
        with pytest.raises(Exception, match="-1 is less than minimum value 0"):
            client.predict("scar", "", 3, -1, 2.0, 2, api_name="/draw")
    finally:
        blocks.close()


# ── the wheel ───────────────────────────────────────────────────────────────────────────────────


def test_a_wheel_draws_outside_of_a_clone(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PROJECT / "vap", source / "vap", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    program = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    files = {path.relative_to(source) for path in (source / "vap").rglob("*") if path.is_file()}
    assert {path for path in files if not (site / path).is_file()} == set()
    (entries,) = site.glob("*.dist-info/entry_points.txt")
    assert "vap = vap.cli:main" in entries.read_text()
    program = f"import vap.cli as cli; assert cli.__file__.startswith({str(site)!r}); cli.main()"
    words = ["generate", str(bundle("uvit")), "--class", "mole", "-n", "2"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    (tmp_path / "away").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path / "away",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "away/out/00001-mole.png").is_file()


def test_the_pages_python_runs_as_it_is_written(
    params: Any, monkeypatch: pytest.MonkeyPatch, bundle: Callable[[str], Path]
) -> None:
    sample.run(params, "own", "vap", "seen")
    shutil.rmtree("my-bundle", ignore_errors=True)
    shutil.move(bundle("vap"), "my-bundle")
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/use.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("phantom-isic2018", "own").replace('"MEL"', '"mole"'), names)
    assert Image.open("melanoma.png").size == (SIDE, SIDE)
    assert (len(names["samples"]), len(names["real"])) == (12, 11)


# ── generate ────────────────────────────────────────────────────────────────────────────────────


def test_generate_of_several_classes(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    files = generate(
        bundle("uvit"), CLASSES, [], 2, tmp_path / "out", guidance_scale=3.0, steps=2, device="cpu"
    )
    assert [file.name for file in files] == [
        *(f"0000{i}-mole.png" for i in (0, 1)),
        *(f"0000{i}-scar.png" for i in (2, 3)),
    ]
    record = json.loads((tmp_path / "out/images.json").read_text())
    assert (record["guidance_scale"], record["sampler"]["steps"], record["device"]) == (3.0, 2, "cpu")
    with pytest.raises(VapError, match="found something there; expected a new or an empty folder"):
        generate(bundle("cbdm"), CLASSES, [], 2, tmp_path / "out")
    with pytest.raises(VapError, match="--class: found none; expected one of mole, scar"):
        generate(tmp_path / "uvit", [], [], 2, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_importing_vap_is_cheap() -> None:
    program = "import sys, vap; assert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules); print(dir(vap))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "VAPDiffusion" in done.stdout
    with pytest.raises(ImportError):
        exec("from vap import Nothing", {})
