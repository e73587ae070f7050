"""Training: what a step draws, that an interrupted run ends with the same bytes, what it says."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import BANK, LATENTS, SHAPE, settings, write_bank, write_own

import vap.generators.train as stage
from vap import cli
from vap.common.artifacts import file_sha256
from vap.common.errors import Stopped, VapError
from vap.generators.base import load_method
from vap.prompts.bank import PromptBank
from vap.training import checkpoint, loop
from vap.training.data import LatentData, batch_rows, step_generator
from vap.training.ema import Ema
from vap.training.image_data import ImageData
from vap.training.seeds import DROPOUT, REAL, step_seed

CLASSES = ["mole", "scar"]
METHODS = ["uvit", "vap", "vap_without_pcm", "dit", "ldm", "cbdm", "stylegan"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_own()


def run(method: str = "uvit", **changes: Any) -> str:
    """Train through the stage; sha256 of the whole result."""
    plain = settings()
    if method not in [*plain.methods, *plain.ablation.without]:  # the smoke profile does not list it
        kind = load_method(method, settings().method).kind
        changes = {"methods": [method], "learns_from": {kind: [method]}, **changes}
    folder = stage.run(settings(**changes), "own", method)
    found = file_sha256(folder)
    shutil.rmtree(folder)
    return found


def checkpoints() -> list[Path]:
    return sorted(Path("work/train").glob("*/step-*"))


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, how: Any) -> pytest.MonkeyPatch:
    """Call `how` when step `at` of a fresh run asks for its examples, once."""
    asked: list[object] = []
    for data in (LatentData, ImageData):

        def examples(self: Any, *args: Any, original: Any = data.examples) -> Any:
            asked.append(args)
            if len(asked) == at + 1:
                how()
            return original(self, *args)

        monkeypatch.setattr(data, "examples", examples)
    return monkeypatch


def ctrl_c() -> None:
    raise KeyboardInterrupt


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# ── what a step draws ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (11, 4), (5, 8), (7, 7), (3, 20)])
def test_batch_rows_are_each_row_once_an_epoch(rows: int, batch: int) -> None:
    steps = 3 * rows
    order = np.concatenate([batch_rows(0, step, rows, batch) for step in range(steps)])
    epochs = order[: len(order) // rows * rows].reshape(-1, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1 or rows < 3


def test_what_a_network_leaves_out_is_drawn_apart_from_its_batch() -> None:
    seeds = [step_seed(0, 3), *(step_seed(0, 3, DROPOUT, rank) for rank in range(3)), step_seed(0, 3, REAL)]
    assert len(set(seeds)) == len(seeds)
    assert step_seed(0, 3) == step_seed(0, 3, 0)  # which is why no stream has the number 0


def test_batch_rows_are_a_function_of_seed_and_step() -> None:
    alone = batch_rows(5, 100, 50, 8)
    for step in (3, 99, 101):
        batch_rows(5, step, 50, 8)
    np.testing.assert_array_equal(batch_rows(5, 100, 50, 8), alone)
    assert (batch_rows(6, 100, 50, 8) != alone).any()


def test_batch_size_does_not_change_the_order_of_the_rows() -> None:
    small = np.concatenate([batch_rows(1, step, 30, 5) for step in range(12)])
    large = np.concatenate([batch_rows(1, step, 30, 20) for step in range(3)])
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("with_bank", [False, True])
def test_shares_of_the_processes_make_the_whole_batch(with_bank: bool) -> None:
    data = LatentData(LATENTS, PromptBank(BANK) if with_bank else None, CLASSES)
    for step in (0, 2, 9):
        whole = data.batch(step, 3, 8, 0.5, 1000)
        shares = [data.batch(step, 3, 8, 0.5, 1000, slice(i, i + 4)) for i in (0, 4)]
        for name in ("x0", "t", "noise"):
            joined = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(joined, getattr(whole, name))
        labels = torch.cat([share.condition.label for share in shares])
        assert torch.equal(labels, whole.condition.label)
        if not with_bank:
            assert whole.condition.context is None
            continue
        for i in range(8):
            share = shares[i // 4].condition
            mine, expected = share.context[i % 4], whole.condition.context[i]
            assert torch.equal(mine[share.mask[i % 4]], expected[whole.condition.mask[i]])


def test_batch_is_the_posterior_sample_of_its_rows() -> None:
    data = LatentData(LATENTS, None, CLASSES)
    batch = data.batch(1, 3, 4, 0.0, 1000)
    noise = torch.randn((4, *SHAPE), generator=step_generator(3, 1)).numpy()
    for i, row in enumerate(batch_rows(3, 1, 11, 4)):
        mean, logvar = data.file.array("moments", int(row)).reshape(2, *SHAPE)
        expected = (mean + np.exp(0.5 * logvar) * noise[i]) * 0.5  # scale
        np.testing.assert_allclose(batch.x0[i].numpy(), expected, rtol=1e-5)
        assert batch.condition.label[i] == row % 2
    assert ((batch.t >= 1) & (batch.t <= 1000)).all()


def test_class_and_description_are_dropped_together() -> None:
    bank = PromptBank(BANK)
    data = LatentData(LATENTS, bank, CLASSES)
    null = torch.from_numpy(bank.tokens(0).copy())
    dropped = total = 0
    for step in range(60):
        c = data.batch(step, 0, 8, 0.25, 1000).condition
        for label, context, mask in zip(c.label, c.context, c.mask, strict=True):
            is_null = int(mask.sum()) == 2 and torch.equal(context[:2], null)
            assert is_null == (label == len(CLASSES))
            dropped += is_null
            total += 1
    assert dropped / total == pytest.approx(0.25, abs=0.06)


def test_time_steps_reach_both_ends() -> None:
    data = LatentData(LATENTS, None, CLASSES)
    t = torch.cat([data.batch(step, 0, 8, 0.0, 10).t for step in range(60)])
    assert t.unique().tolist() == list(range(1, 11))


def test_only_training_rows_are_learned_from() -> None:
    data = LatentData(LATENTS, None, CLASSES)
    assert data.rows.tolist() == list(range(11))
    assert data.counts.tolist() == [6, 5]


def test_an_image_without_description_is_named() -> None:
    write_bank(BANK, images=9)
    with pytest.raises(VapError, match="no description of i09 and 1 more"):
        LatentData(LATENTS, PromptBank(BANK), CLASSES)


# ── the same bytes, however it went ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes_other_seed_other_bytes(method: str) -> None:
    first = run(method)
    assert run(method) == first
    assert run(method, seed=1) != first
    assert not list(Path("work/train").iterdir())  # the state is gone when all is written


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [ctrl_c, sigterm])
def test_an_interrupted_run_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, method: str, how: Any
) -> None:
    whole = run(method)
    interrupt(monkeypatch, 4, how)
    with pytest.raises((KeyboardInterrupt, Stopped)):
        run(method)
    saved = [path.name for path in checkpoints()]
    assert saved == (["step-00000003"] if how is ctrl_c else ["step-00000003", "step-00000005"])
    assert run(method) == whole
    assert not checkpoints()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run()
    interrupt(monkeypatch, 1, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == whole


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no weights", "no state", "torn state"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    whole = run()
    interrupt(monkeypatch, 7, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run()
    newest = checkpoints()[-1]
    assert [path.name for path in checkpoints()] == ["step-00000003", "step-00000006"]
    weights, state = newest / "model.safetensors", newest / "state.json"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[:-40])
    elif damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:30])
    asked: list[int] = []
    monkeypatch.setattr(loop.Progress, "skip", lambda _self, n: asked.append(n))
    assert run() == whole
    assert asked == [3]
    assert "step-00000006: damaged" in capsys.readouterr().err


def test_damage_to_all_checkpoints_means_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    interrupt(monkeypatch, 7, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run()
    for folder in checkpoints():
        (folder / "ema.safetensors").write_bytes(b"")
    assert run() == whole


def test_a_changed_setting_does_not_take_over_the_old_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(method__uvit__train__lr=5e-4)
    interrupt(monkeypatch, 7, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run(method__uvit__train__lr=5e-4) == whole


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path / "c", step, {"model": {"w": torch.ones(2)}}, {})
    assert [p.name for p in sorted((tmp_path / "c").iterdir())] == ["step-00000003", "step-00000010"]


def test_progress_says_that_it_was_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 4, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert "train own uvit: resumed" in capsys.readouterr().err


# ── what it says ────────────────────────────────────────────────────────────────────────────────


def test_a_loss_that_is_not_finite_is_one_line_with_the_last_good_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = LatentData.batch

    def batch(self: LatentData, step: int, *args: Any, **kwargs: Any) -> Any:
        found = original(self, step, *args, **kwargs)
        if step == 5:
            found.x0[0, 0, 0, 0] = torch.nan
        return found

    monkeypatch.setattr(LatentData, "batch", batch)
    with pytest.raises(VapError) as caught:
        run()
    line = str(caught.value)
    assert "\n" not in line
    assert "train own uvit, step 6" in line
    assert "not finite" in line
    assert "step-00000003" in line
    assert [path.name for path in checkpoints()] == ["step-00000003"]  # no broken state is kept


def test_sigterm_is_one_line_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 4, sigterm)
    monkeypatch.setattr(cli, "_params", lambda *_: settings())
    monkeypatch.setattr("sys.argv", ["vap", "train", "own", "uvit"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code not in (0, None)
    assert "stopped at step 5; the next run goes on" in capsys.readouterr().err.splitlines()[-1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_result_that_could_not_be_written_is_told_before_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "train", lambda *_, **__: pytest.fail("it was trained"))
    Path("results").mkdir()
    Path("results/models").write_text("a file")
    with pytest.raises(OSError, match="results/models"):
        run()


def test_a_method_under_the_wrong_kind_is_one_line() -> None:
    with pytest.raises(VapError, match=r"its name under learns_from.latents"):
        run("uvit", learns_from={"prompts": ["uvit", "vap"], "latents": []})


def test_a_network_that_does_not_fit_the_latents_is_one_line() -> None:
    with pytest.raises(VapError, match=r"method.uvit.model: found latents of side 4 cannot be cut"):
        run("uvit", method__uvit__model__patch=3)


def test_batch_must_divide_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    make = loop.make_accelerator

    def three(device: str, precision: str) -> Any:
        accelerator = make(device, precision)
        monkeypatch.setattr(type(accelerator), "num_processes", property(lambda _self: 3))
        return accelerator

    monkeypatch.setattr(loop, "make_accelerator", three)
    with pytest.raises(
        VapError, match=r"method.uvit.train.batch_size: found 4; expected a multiple of the 3"
    ):
        run()


def test_result_says_what_made_it() -> None:
    folder = stage.run(settings(), "own", "vap")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "train.csv",
    ]
    lines = (folder / "train.csv").read_text().splitlines()
    assert lines[0].startswith("step,lr,loss,grad_norm,uneven_error,denoising_loss,recon_loss,recon_share")
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "4", "6", "8"]
    # warm-up over 2 steps, then constant
    assert {float(line.split(",")[1]) for line in lines[1:]} == {1e-3}


# ── averages and optimiser state ────────────────────────────────────────────────────────────────


def test_ema_is_the_recursion() -> None:
    net = nn.Linear(3, 2)
    ema = Ema(net, 0.9, warmup=False)
    expected = net.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            net.weight.add_(step)
        ema.update(net, step)
        expected = 0.9 * expected + 0.1 * net.weight.detach()
    torch.testing.assert_close(ema.state()["weight"], expected)


def test_ema_warm_up_forgets_the_initial_weights() -> None:
    net = nn.Linear(3, 2)
    nn.init.constant_(net.weight, 1000.0)
    slow, warm = Ema(net, 0.999, warmup=False), Ema(net, 0.999, warmup=True)
    nn.init.zeros_(net.weight)
    expected = 1000.0
    for step in range(1, 51):
        slow.update(net, step)
        warm.update(net, step)
        expected *= min(0.999, (1 + step) / (10 + step))
    assert float(slow.state()["weight"][0, 0]) > 900
    assert float(warm.state()["weight"][0, 0]) == pytest.approx(expected, rel=1e-3)
    assert expected < 1


def test_ema_round_trip_and_independence() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ema, copy = Ema(net, 0.5, warmup=False), Ema(other, 0.5, warmup=False)
    copy.load({name: value.clone() for name, value in ema.state().items()})
    with torch.no_grad():
        net.weight.zero_()
    assert ema.state()["weight"].any()  # a copy of the weights, not a view
    assert torch.equal(copy.state()["weight"], ema.state()["weight"])


def test_optimiser_state_round_trip_goes_on_bit_for_bit() -> None:
    def step(net: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
        return net, torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.99), foreach=True)

    net, optimizer = make()
    names = [name for name, _ in net.named_parameters()]
    for i in range(3):
        step(net, optimizer, i)
    folder = Path("round-trip")
    parts = {
        "model": net.state_dict(),
        "optimizer": checkpoint.optimizer_tensors(optimizer, names),
    }
    checkpoint.save(folder, 3, parts, {"log": [{"loss": 0.1}]})
    for i in range(3, 6):
        step(net, optimizer, i)

    again, optimizer = make()
    loaded, state = checkpoint.load_newest(folder)  # type: ignore[misc]
    assert (state["step"], state["log"]) == (3, [{"loss": 0.1}])
    again.load_state_dict(loaded["model"])
    checkpoint.load_optimizer_tensors(optimizer, names, loaded["optimizer"])
    for i in range(3, 6):
        step(again, optimizer, i)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
