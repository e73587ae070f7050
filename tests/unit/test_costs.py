"""`vap cost`: a row for every job, FLOPs as torch counts them of real steps, sums, and what is not known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from toy import PROJECT
from typer.testing import CliRunner

from vap import cli
from vap.common.errors import VapError
from vap.costs import count as costs_count
from vap.costs import estimate as costs
from vap.costs import model as costs_model
from vap.costs import rules as costs_rules
from vap.costs.count import Sizes, Work
from vap.costs.images import images_of
from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes, load_method
from vap.params import Params, parse
from vap.profiles import profile_text, read_profile
from vap.training.batch import Batch, Condition
from vap.workflow import snakemake as pipeline

PROFILES = sorted((PROJECT / "config").glob("*.yaml"))
SMALL = Work(2.0e9, 100, 1e6, 1e5, 1000)


def config_of(name: str) -> dict[str, Any]:
    return read_profile(PROJECT / f"config/{name}.yaml")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with its settings, phantoms and nothing that was made or measured."""
    for path in ("dvc.yaml", "config"):
        source = PROJECT / path
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / path)
    for spec in (PROJECT / "data/raw").glob("*/phantom.yaml"):
        target = tmp_path / spec.relative_to(PROJECT)
        target.parent.mkdir(parents=True)
        shutil.copyfile(spec, target)
    monkeypatch.chdir(tmp_path)
    pipeline.dvc_stages.cache_clear()
    yield tmp_path
    pipeline.dvc_stages.cache_clear()


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network costs the same: what is tested is everything around them."""
    coder = costs_count.Coder(SMALL, SMALL, 4, 8)
    monkeypatch.setattr(costs_model, "training_pass", lambda *_: SMALL)
    monkeypatch.setattr(costs_model, "sampling_pass", lambda *_: SMALL)
    for module in (costs_model, costs_rules):
        monkeypatch.setattr(module, "autoencoder", lambda *_: coder)
    monkeypatch.setattr(costs_rules, "timm_pass", lambda *_: (SMALL, 64))


def rows_of(name: str, device: costs.Device = "cuda") -> list[costs.Row]:
    config = config_of(name)
    return costs.estimate(parse(config), config, device, costs.load_rates())


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_rule_is_of_a_command() -> None:
    assert set(costs_rules.RULES) == {entry["cmd"].split()[1] for entry in pipeline.dvc_stages().values()} - {
        "plan"
    }


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_job_has_a_row(profile: Path, no_counting: None) -> None:
    rows = rows_of(profile.stem)
    names = [f"{row.stage}@{row.item}" if row.item else row.stage for row in rows]
    assert names == pipeline.stage_names(config_of(profile.stem))
    forgotten = {row.stage: row.notes for row in rows if row.basis == "unknown"}
    assert not forgotten, "a command needs a rule in vap/costs/rules.py: RULES"
    assert all(row.scales and row.memory_gb for row in rows if row.hours is not None)


def test_a_stage_without_rule_is_not_known_and_one_of_the_users_own_is_left_out(
    project: Path, no_counting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    record["stages"]["polish"] = {"cmd": "vap polish ${item.dataset}", "matrix": {"dataset": ["a", "b"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    pipeline.dvc_stages.cache_clear()
    assert not [row for row in rows_of("smoke") if row.stage == "polish"]
    monkeypatch.setattr(pipeline, "COMMANDS", [*pipeline.COMMANDS, ["polish"]])
    pipeline.dvc_stages.cache_clear()
    found = [row for row in rows_of("smoke") if row.stage == "polish"]
    assert [row.item for row in found] == ["a", "b"]
    assert all(row.hours is None and "vap polish" in row.notes[0] for row in found)


def test_a_rule_is_found_by_the_commands_verb(project: Path, no_counting: None) -> None:
    record = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    record["stages"]["draw-more"] = {
        "cmd": "vap sample ${item.dataset} ${item.method} ${item.condition}",
        "matrix": {"dataset": "${datasets}", "method": ["vap"], "condition": ["unseen"]},
    }
    Path("dvc.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    pipeline.dvc_stages.cache_clear()
    rows = rows_of("smoke")
    more = next(row for row in rows if row.stage == "draw-more")
    plain = next(row for row in rows if row.stage == "sample-prompts")
    assert more == replace(plain, stage="draw-more", item=more.item)
    assert more.item.endswith("-vap-unseen")


def test_a_run_costs_what_its_method_costs(no_counting: None) -> None:
    config = config_of("smoke") | {"methods": ["uvit", "uvit_seed1", "vap", "vap_seed27"]}
    config["learns_from"] |= {
        "latents": ["uvit", "uvit_seed1"],
        "prompts": ["vap", "vap_seed27", "vap_data10"],
    }
    config["downstream"]["generator_ratios"] = ["10"]
    rows = costs.estimate(parse(config), config, "cuda", costs.load_rates())
    names = [f"{row.stage}@{row.item}" if row.item else row.stage for row in rows]
    assert names == pipeline.stage_names(config)
    by_name = dict(zip(names, rows, strict=True))
    for kind, method, run in (("latents", "uvit", "uvit_seed1"), ("prompts", "vap", "vap_seed27")):
        for stage in (f"train-{kind}", f"sample-{kind}", "evaluate"):
            own, other = (by_name[f"{stage}@phantom-isic2018-{name}"] for name in (method, run))
            assert other == replace(own, item=other.item)
    for stage in ("train-prompts", "sample-prompts"):
        own, other = (by_name[f"{stage}@phantom-isic2018-{name}"] for name in ("vap", "vap_data10"))
        assert other == replace(own, item=other.item)
    assert sum(row.stage == "classify-ratio" for row in rows) == 4  # two datasets, two classifiers


def test_sums_add_up(no_counting: None) -> None:
    rows = rows_of("paper")
    total, parts = costs.sum_of(rows), [costs.sum_of(part) for _, part in costs.by_stage(rows)]
    hours = sum(row.hours for row in rows if row.hours is not None)
    assert total.gpu_hours + total.cpu_hours == pytest.approx(hours)
    assert total.gpu_hours > 0
    assert total.cpu_hours > 0
    for key in ("jobs", "gpu_hours", "cpu_hours", "disk_gb", "unknown"):
        assert getattr(total, key) == pytest.approx(sum(getattr(part, key) for part in parts))
    assert total.memory_gb == max(part.memory_gb for part in parts)
    assert total.jobs == len(rows)


# ── FLOPs ───────────────────────────────────────────────────────────────────────────────────────────


def real_flops(params: Params, name: str, batch: int) -> float:
    """Of a real training step, backward pass and all."""
    method = load_method(name, params.method)
    size, channels = (method.model.image_size, 3) if name == "cbdm" else (8, 4)
    texts = name == "vap"
    net = method.build(Shapes(size, channels, 5, 24 if texts else None, 12 if texts else 0))
    x, label = torch.randn(batch, channels, size, size), torch.zeros(batch, dtype=torch.int64)
    condition = Condition(label)
    if texts:
        mask = torch.ones(batch, 12, dtype=torch.bool)
        condition = Condition(label, torch.randn(batch, 12, 24), mask)
    data = Batch(x, condition, torch.full_like(label, 7), torch.randn_like(x), label)
    schedule = Schedule(**method.schedule(params.train).model_dump())
    with FlopCounterMode(display=False) as counter:
        method.loss(net, data, schedule)[0].backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", ["uvit", "vap", "dit", "ldm", "cbdm"])
def test_training_flops_are_those_of_a_real_step(name: str) -> None:
    params = parse(config_of("demo"))
    sizes = Sizes(8, 4, 5, 24, 12) if name == "vap" else Sizes(8, 4, 8)
    if name == "cbdm":
        sizes = Sizes(params.method[name].model["image_size"], 3, 8)
    counted = costs_model.training(params, name, sizes, 3)
    assert counted.flops == pytest.approx(real_flops(params, name, 3), rel=0.05)
    assert counted.parameters > 0
    assert counted.activations > 0


def test_gan_flops_are_those_of_a_real_step() -> None:
    from vap.generators.stylegan.training import GanBatch
    from vap.training.loop import make_accelerator

    params, batch = parse(config_of("demo")), 4
    method = load_method("stylegan", params.method)
    size = method.model.image_size

    class Data:
        shape, classes = (3, size, size), [str(i) for i in range(8)]

    learner = method.learner(
        lambda: method.build(Shapes(size, 3, 8)), Data(), params.train, params.compute, 0
    )(make_accelerator("cpu", "fp32"))
    label = torch.zeros(batch, dtype=torch.int64)
    z = torch.randn(batch, 2, method.model.z_dim)
    given = GanBatch(torch.rand(batch, 3, size, size), label, z, torch.stack([label, label], 1))
    with FlopCounterMode(display=False) as counter:
        learner.step(given, 1)
    counted = costs_model.training(params, "stylegan", Sizes(size, 3, 8), batch).flops
    # counted: R1's mean share; real: no R1 in this step, and the augmentation's filters
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.2)


def test_guidance_and_steps_multiply_sampling() -> None:
    params, sizes = parse(config_of("demo")), Sizes(8, 4, 8)
    work, steps, passes = costs_model.sampling(params, "uvit", sizes, 3, "cuda")
    net = load_method("uvit", params.method).build(Shapes(8, 4, 8)).eval()
    x, label = torch.randn(3, 4, 8, 8), torch.zeros(3, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(x, label + 1, label)
    assert (steps, passes) == (params.sample.steps, 2)
    assert work.flops == steps * passes * counter.get_total_flops()


def test_hours_follow_steps_and_rates(no_counting: None) -> None:
    config = config_of("smoke")
    rates = costs.load_rates()
    start = rates["start_s"]["rate"] / 3600
    rates["devices"]["cuda"]["kernel_s"]["rate"] = 0.0

    def hours(steps: int, rate: float) -> float:
        config["method"]["uvit"]["train"]["steps"] = steps
        for precision in ("fp32", "bf16"):
            rates["devices"]["cuda"]["train"]["transformer"][precision]["rate"] = rate
        rows = costs.estimate(parse(config), config, "cuda", rates)
        return next(row.hours for row in rows if row.item.endswith("-uvit")) - start

    assert hours(1000, 2.0) == pytest.approx(1000 * 3 * SMALL.flops / 2e12 / 3600)
    assert hours(2000, 2.0) == pytest.approx(2 * hours(1000, 2.0))
    assert hours(1000, 4.0) == pytest.approx(hours(1000, 2.0) / 2)


# ── what is known ───────────────────────────────────────────────────────────────────────────────────


def test_images_are_counted_or_official_or_not_known() -> None:
    rates = costs.load_rates()["images"]
    paper, demo = parse(config_of("paper")), parse(config_of("demo"))
    assert images_of(paper, "isic2018", rates).train == 10015
    assert images_of(paper, "chestxray14", rates).all == 22971 + 7992
    assert images_of(paper, "isic2019", rates).all == 25331
    assert images_of(paper, "colonoscopy", rates).all is None
    config = config_of("isic2018-64")
    config["prepare"] |= {"max_train": 3000, "max_test": 400}
    limited = images_of(parse(config), "isic2018", rates)
    assert (limited.train, limited.test) == (3000, 400)
    phantom = images_of(demo, "phantom-isic2018", rates)
    spec = yaml.safe_load(Path("data/raw/phantom-isic2018/phantom.yaml").read_text(encoding="utf-8"))
    assert phantom.train == sum(spec["counts"]["train"].values())
    assert phantom.source == "phantom.yaml"
    Path("data/raw/phantom-isic2018/phantom.yaml").unlink()
    assert images_of(demo, "phantom-isic2018", rates).all is None


def test_what_is_not_known_is_said(no_counting: None) -> None:
    rows = [row for row in rows_of("paper") if row.item == "colonoscopy"]
    by_stage = {row.stage: row for row in rows}
    for stage in ("prepare", "caption", "encode", "latents"):
        assert by_stage[stage].hours is None
        assert by_stage[stage].disk_gb is None
        assert any("known" in note for note in by_stage[stage].notes)
    config = config_of("paper")
    config["caption"]["model"] = "somebody/great-model"
    found = costs.estimate(parse(config), config, "cuda", costs.load_rates())
    caption = next(row for row in found if row.stage == "caption" and row.item == "isic2018")
    assert caption.hours is None
    assert "somebody/great-model" in " ".join(caption.notes)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", (8e9, 8e9)),
        ("Qwen3-VL-30B-A3B-Instruct", (30e9, 3e9)),
        ("llava-1.5-7b-hf", (7e9, 7e9)),
        ("smol-0.5B", (0.5e9, 0.5e9)),
        ("gpt-of-tomorrow", None),
        ("bert-4bit", None),
    ],
)
def test_the_size_of_a_model_by_its_name(name: str, size: tuple[float, float] | None) -> None:
    assert costs_rules.model_size(name) == size


def test_no_gpu_rate_claims_to_be_measured(no_counting: None) -> None:
    assert {row.basis for row in rows_of("paper") if row.place == "GPU" and row.basis != "known"} == {
        "assumed"
    }
    assert all("from" in entry for entry in _entries(costs.load_rates()))


def _entries(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, dict):
        own = [data] if "rate" in data else []
        return own + [entry for value in data.values() for entry in _entries(value)]
    return [entry for value in data for entry in _entries(value)] if isinstance(data, list) else []


# ── benchmarks ──────────────────────────────────────────────────────────────────────────────────────


def test_measurements_go_before_the_file(tmp_path: Path) -> None:
    machine = "Some CPU, 4 cores, Python 3.11"
    numbers = {
        "train_step": {"device": "cuda", "machine": machine, "ours_tflops": 200.0},
        "sample_50": {"device": "cpu", "machine": machine, "ours_tflops": 0.4},
        "prepare": {
            "machine": machine,
            "1000_images_64_px_png_img_s": 10.0,
            "1000_images_64_px_png_bare_img_s": 5.0,
            "1000_images_64_px_png_peak_mb": 50.0,
            "9000_images_64_px_png_img_s": 11.0,
            "9000_images_64_px_png_peak_mb": 60.0,
        },
    }
    for name, data in numbers.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    rates, plain = costs.load_rates(tmp_path), costs.load_rates()
    cuda, cpu = rates["devices"]["cuda"], rates["devices"]["cpu"]
    assert cuda["train"]["transformer"]["bf16"] == {"rate": 200.0, "from": "measured: train_step.json"}
    assert cpu["sample"]["transformer"]["fp32"]["rate"] == pytest.approx(0.1)
    assert cuda["train"]["convolution"] == plain["devices"]["cuda"]["train"]["convolution"]
    (row,) = rates["prepare"]["rates"]
    assert (row["rate"], row["side"], row["storage"], row["peak_mb"]) == (11.0, 64, "png", 60.0)
    assert rates["prepare"]["stored"] == plain["prepare"]["stored"]
    assert costs.measured(tmp_path / "nowhere") == {"devices": {}}


def test_measured_methods_have_rates_of_their_own(project: Path, tmp_path: Path, no_counting: None) -> None:
    data = {"device": "cuda", "machine": "x, 2 cores", "uvit_train_img_s": 500.0, "vap_sample_img_s": 3.0}
    (tmp_path / "methods.json").write_text(json.dumps(data))
    cuda = costs.load_rates(tmp_path)["devices"]["cuda"]
    assert cuda["train"]["uvit"]["bf16"]["rate"] == pytest.approx(500.0 * SMALL.flops * 3 / 32 / 1e12)
    assert cuda["sample"]["vap"]["bf16"]["from"] == "measured: methods.json"


def test_a_broken_benchmark_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train_step.json").write_text("{}")
    with pytest.raises(VapError, match=r"train_step.json: found no device"):
        costs.measured(tmp_path)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_list_and_write_nothing(project: Path, no_counting: None) -> None:
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["cost", "paper"])
    dry = runner.invoke(cli.app, ["profile", "paper", "--dry-run"])
    assert listed.exit_code == dry.exit_code == 0, listed.output + dry.output
    assert dry.output == listed.output
    assert not Path("params.yaml").exists()
    for text in ("isic2018-vap", "500,000 steps x 256", "assumed", "sum all", "A100", "10,000 images", "?"):
        assert text in listed.output
    Path("params.yaml").write_text(profile_text(Path("config/smoke.yaml")), encoding="utf-8")
    found = runner.invoke(cli.app, ["cost", "--json", "--device", "cpu"])
    data = json.loads(found.output)
    assert data["total"]["jobs"] == len(data["jobs"]) == len(pipeline.stage_names(config_of("smoke")))
    assert data["total"]["gpu_hours"] == 0
    assert sum(stage["disk_gb"] for stage in data["stages"].values()) == pytest.approx(
        data["total"]["disk_gb"]
    )


def test_bad_arguments_are_one_line() -> None:
    runner = CliRunner()
    for arguments, found in (
        (["cost", "nothing"], "config/nothing.yaml"),
        (["cost", "--device", "tpu"], "tpu"),
    ):
        result = runner.invoke(cli.app, arguments)
        assert isinstance(result.exception, VapError)
        assert found in str(result.exception)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "dvc.yaml: found no such file"),
        ("stages: [", "dvc.yaml: found no YAML"),
        ("text", "dvc.yaml: stages: found no such key"),
        ("stages: 3", "dvc.yaml: stages: found 3"),
        ("stages: {a: {}}", "dvc.yaml: stages.a: found no command"),
        ("stages: {a: {cmd: vap table, deps: 3}}", "dvc.yaml: stages.a.deps: found 3"),
        ("stages: {a: {cmd: vap table, matrix: {x: 3}}}", "dvc.yaml: stages.a.matrix: found {'x': 3}"),
        ("stages: {a: {cmd: vap table, matrix: {x: '${nix.x}'}}}", "dvc.yaml: found the name nix.x"),
        (
            "stages:\n  a: {cmd: b}\n  a: {cmd: b}",
            "dvc.yaml: stages.a: found this key twice, in lines 2 and 3",
        ),
    ],
)
def test_a_broken_record_is_one_line(content: str | None, found: str) -> None:
    Path("dvc.yaml").unlink()
    if content is not None:
        Path("dvc.yaml").write_text(content)
    result = CliRunner().invoke(cli.app, ["cost", "smoke"])
    assert isinstance(result.exception, VapError)
    assert found in str(result.exception)


def test_a_key_that_stands_twice_is_refused_though_snakemake_takes_the_last() -> None:
    text = Path("config/demo.yaml").read_text(encoding="utf-8") + "seed: 1\n"
    Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(VapError, match=r"params.yaml: seed: found this key twice, in lines \d+ and \d+"):
        pipeline.set_up(yaml.safe_load(text), main_process=True)
