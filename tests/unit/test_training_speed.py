"""Ways to run the same training: held data, pieces, batches ahead, a compiler, several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy import BANK, LATENTS, settings, write_bank, write_latents, write_prepared

import vap.generators.train as stage
from vap import cli
from vap.common import processes
from vap.common.artifacts import file_sha256
from vap.common.errors import Stopped, VapError
from vap.common.places import set_up_torch
from vap.generators.denoising import DiffusionLearner
from vap.params import PARAMS_FILE
from vap.prompts.bank import PromptBank
from vap.training import data as training_data
from vap.training import image_data, loop, watch
from vap.training.batch import Batch, Condition
from vap.training.data import LatentData
from vap.training.prefetch import prefetched

CLASSES = ["mole", "scar"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None, fresh_accelerate: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_latents(LATENTS)
    write_bank(BANK)


def weights(method: str = "uvit", **changes: Any) -> dict[str, torch.Tensor]:
    return load_file(stage.run(settings(**changes), "own", method) / "model.safetensors")


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# ── data ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("with_bank", [False, True])
def test_held_data_make_the_batches_of_streamed_data(
    with_bank: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "HOLD_ROWS", 4)  # of 11
    bank = PromptBank(BANK) if with_bank else None
    streamed, held = LatentData(LATENTS, bank, CLASSES), LatentData(LATENTS, bank, CLASSES)
    held.hold(CPU)
    assert not held.fits(CPU)
    for step in range(6):
        a, b = (data.batch(step, 3, 5, 0.3, 1000) for data in (streamed, held))
        for x, y in zip(
            [a.x0, a.t, a.noise, *a.condition.tensors()],
            [b.x0, b.t, b.noise, *b.condition.tensors()],
            strict=True,
        ):
            assert torch.equal(x, y)


def test_held_images_make_the_batches_of_streamed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "HOLD_ROWS", 4)  # of 11
    file = write_prepared(Path("data/prepared/own.arrow"))
    streamed, held = (image_data.ImageData(file, 8, "x", flip=True) for _ in range(2))
    held.hold(CPU)
    for step in range(6):
        assert torch.equal(held.batch(step, 3, 5, 0.3, 10).x0, streamed.batch(step, 3, 5, 0.3, 10).x0)


def test_flipped_images_are_the_images_or_their_mirrors() -> None:
    file = write_prepared(Path("data/prepared/own.arrow"))
    plain = image_data.ImageData(file, 16, "x")
    rows, seen = np.arange(11), []
    originals = plain.examples(rows, torch.Generator(), slice(None))[0]
    for step in range(20):
        found = image_data.ImageData(file, 16, "x", flip=True).batch(step, 0, 11, 0.0, 10)
        order = training_data.batch_rows(0, step, 11, 11)
        for x, row in zip(found.x0, order, strict=True):
            mirrored = torch.equal(x, originals[row].flip(2))
            assert mirrored != torch.equal(x, originals[row])
            seen.append(mirrored)
    assert 0.35 < np.mean(seen) < 0.65


def test_held_data_read_no_file_again() -> None:
    data = LatentData(LATENTS, PromptBank(BANK), CLASSES)
    data.hold(CPU)
    data.file.array = data.bank.collate = None  # type: ignore
    data.batch(0, 0, 4, 0.1, 1000)


def test_texts_are_padded_to_a_multiple_within_the_limit() -> None:
    bank = PromptBank(BANK)  # texts of 2 to 5 tokens, at most 6
    for step in range(8):
        plain = LatentData(LATENTS, bank, CLASSES).batch(step, 0, 4, 0.2, 1000).condition
        even = LatentData(LATENTS, bank, CLASSES, 4).batch(step, 0, 4, 0.2, 1000).condition
        S = plain.context.shape[1]
        assert even.context.shape[1] == (4 if S <= 4 else 6)
        assert torch.equal(even.context[:, :S], plain.context)
        assert torch.equal(even.mask[:, :S], plain.mask)
        assert not even.mask[:, S:].any()
        assert not even.context[:, S:].any()


def test_pieces_of_a_batch_are_the_batch() -> None:
    whole = LatentData(LATENTS, PromptBank(BANK), CLASSES).batch(0, 0, 8, 0.2, 1000)
    pieces = list(whole.pieces(3))
    assert [len(piece.x0) for piece in pieces] == [3, 3, 2]
    assert torch.equal(torch.cat([piece.noise for piece in pieces]), whole.noise)
    assert torch.equal(torch.cat([piece.condition.context for piece in pieces]), whole.condition.context)


def test_conditions_of_unequal_length_are_joined() -> None:
    a = Condition(torch.tensor([1]), torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    b = Condition(torch.tensor([0]), torch.ones(1, 4, 3), torch.ones(1, 4, dtype=torch.bool))
    both = a.joined(b)
    assert both.label.tolist() == [1, 0]
    assert both.mask.sum(1).tolist() == [2, 4]
    assert both.context.sum((1, 2)).tolist() == [6, 12]
    assert Condition(torch.tensor([1])).joined(Condition(torch.tensor([2]))).label.tolist() == [1, 2]


# ── batches ahead ───────────────────────────────────────────────────────────────────────────────


def test_prefetched_batches_come_in_order_from_another_thread() -> None:
    threads = set()

    def make(step: int) -> int:
        threads.add(threading.get_ident())
        return step * step

    assert list(prefetched(make, 3, 8)) == [9, 16, 25, 36, 49]
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


def test_prefetching_stays_a_few_batches_ahead() -> None:
    made: list[int] = []
    before = threading.active_count()
    batches = prefetched(lambda step: made.append(step) or step, 0, 100, ahead=2)  # type: ignore[func-returns-value]
    next(batches)
    time.sleep(0.3)
    assert len(made) <= 4  # the one taken, two that wait, one in the making
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(("name", "chosen"), [("cuda", []), ("cuda:1", [1, 1])])
def test_batches_for_a_gpu_are_made_on_the_gpu_that_accelerate_names(
    name: str, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one process accelerate names it without a number, which `torch.cuda.set_device` refuses."""
    seen = []

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index, but got: {device}")
        seen.append(device.index)

    class Steps:
        def batch(self, step: int, part: slice) -> Any:
            return SimpleNamespace(map=lambda change: step)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    made = loop._batches(Steps(), slice(None), 0, 2, torch.device(name))  # type: ignore[type-var]
    assert list(made) == [0, 1]
    assert seen == chosen


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise VapError("a", "b", "c", "d")
        return step

    batches = prefetched(make, 0, 5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(VapError):
        next(batches)


# ── the step ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["uvit", "vap"])
@pytest.mark.parametrize("size", [1, 3])
def test_accumulated_pieces_train_what_the_whole_batch_trains(method: str, size: int) -> None:
    assert_near(weights(method, compute__micro_batch=size), weights(method))


def test_bf16_trains_near_fp32_and_keeps_float32_weights() -> None:
    full = weights("vap")
    AcceleratorState._reset_state(reset_partial_state=True)
    half = weights("vap", train__precision="bf16")
    assert all(value.dtype == torch.float32 for value in half.values())
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert_near(half, full, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uvit", "vap"])
def test_a_compiled_network_trains_what_the_plain_one_trains(method: str) -> None:
    assert_near(weights(method, compute__compile=True), weights(method))


def test_an_exploded_loss_is_one_line_with_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LatentData.batch

    def batch(self: LatentData, step: int, *args: Any, **kwargs: Any) -> Batch:
        found = original(self, step, *args, **kwargs)
        if step == 5:
            found.noise *= 100
        return found

    monkeypatch.setattr(LatentData, "batch", batch)
    with pytest.raises(VapError) as caught:
        weights()
    line = str(caught.value)
    assert "own uvit, step 6" in line
    assert "it has exploded" in line
    assert "lr" in line
    assert "step-00000003" in line
    assert "\n" not in line


def test_a_kernel_that_is_not_deterministic_is_one_line_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch refuses it on a GPU under compute.deterministic."""

    def refuse(*_: object) -> None:
        raise RuntimeError(
            "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but …"
        )

    monkeypatch.setattr(DiffusionLearner, "step", refuse)
    with pytest.raises(VapError, match=r"grid_sampler.*implementation; .*compute\.deterministic: false"):
        stage.run(settings(), "own", "uvit")


def test_gradients_that_are_no_numbers_stop_the_run_unless_a_scaler_expects_them() -> None:
    row = {"loss": 0.5, "grad_norm": float("inf")}
    learner: Any = SimpleNamespace(explodes=10.0, scaled=False, remedy="a smaller lr")
    with pytest.raises(VapError, match=r"a grad_norm that is not finite.*try a smaller lr; last good: none"):
        watch.check_health(learner, "x", 1, row, Path())
    learner.scaled = True
    watch.check_health(learner, "x", 1, row, Path())
    with pytest.raises(VapError, match="a d_loss that is not finite"):  # also of an adversary
        watch.check_health(learner, "x", 1, row | {"d_loss": float("nan")}, Path())


# ── the onlooker ────────────────────────────────────────────────────────────────────────────────


def live() -> list[list[str]]:
    return [line.split(",") for line in Path("logs/train/own-vap/curves.csv").read_text().splitlines()]


def test_live_curves_show_rate_and_memory_beside_the_log() -> None:
    weights("vap")
    head, *rows = live()
    assert head[:2] == ["step", "lr"]
    assert head[-2:] == ["images_per_s", "memory_mb"]
    assert {"recon_loss", "recon_share", "feature_std", "grad_norm"} <= set(head)
    assert [row[0] for row in rows] == ["2", "4", "6", "8"]
    assert all(float(value) > 0 for row in rows for value in row[-2:])


def test_live_curves_of_a_resumed_run_have_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LatentData.batch

    def stop(self: LatentData, step: int, *args: Any, **kwargs: Any) -> Batch:
        if step == 5:
            raise KeyboardInterrupt
        return original(self, step, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(LatentData, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            weights("vap")
    assert [row[0] for row in live()[1:]] == ["2", "4"]  # the checkpoint is of step 3
    weights("vap")
    assert [row[0] for row in live()[1:]] == ["2", "4", "6", "8"]


def test_a_preview_that_fails_does_not_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    weights("uvit", compute__preview_every=8)  # there is no params.yaml here
    said = capsys.readouterr().err
    assert "no preview of step 8" in said
    assert "params.yaml: found no such file" in said


# ── several processes ───────────────────────────────────────────────────────────────────────────


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """`python -m vap` is `code` in the processes that are started."""
    package = Path("stand-in/vap")
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent.resolve()))


def test_one_process_does_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not processes.launched_together(1, ["train"])
    monkeypatch.setenv("RANK", "1")
    assert not processes.launched_together(4, ["train"])


@pytest.mark.parametrize(("gpus", "rank", "local"), [(1, "1", 0), (2, "1", 1), (4, "3", 3), (1, None, 0)])
def test_processes_share_the_gpus_that_there_are(
    gpus: int, rank: str | None, local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate too takes its device from LOCAL_RANK, and NCCL wants a GPU for each process."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert set_up_torch(settings(compute__device="cuda").compute) == torch.device("cuda", local)
    assert os.environ.get("LOCAL_RANK", "0") == str(local)

    handed: dict[str, Any] = {}
    monkeypatch.setattr("accelerate.Accelerator", lambda **settings: handed.update(settings))
    for together in (gpus, gpus + 1):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(together))
        loop.make_accelerator("cuda", "bf16")
        handlers = handed["kwargs_handlers"]
        assert (handlers is None) == (together <= gpus)
    assert handlers[0].backend == "gloo"


def test_processes_know_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        "places = [os.environ[name] for name in ('WORLD_SIZE', 'LOCAL_RANK')]\n"
        "open(f'rank-{rank}', 'w').write(' '.join([*sys.argv[1:], *places]))",
    )
    assert processes.launched_together(3, ["train", "own"])
    assert [Path(f"rank-{r}").read_text() for r in range(3)] == [f"train own 3 {r}" for r in range(3)]


def test_a_failing_process_ends_the_others_and_gives_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    stand_in(monkeypatch, "if rank == 1: sys.exit('error: no such thing')\ntime.sleep(60)")
    start = time.monotonic()
    with pytest.raises(VapError, match=r"process 1 of 2: found exit status 1: error: no such thing"):
        processes.launched_together(2, ["train"])
    assert time.monotonic() - start < 20


def test_the_first_process_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sys.exit(2)")
    with pytest.raises(SystemExit) as caught:
        processes.launched_together(2, ["train"])
    assert caught.value.code == 2


def test_sigterm_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "open(f'up-{rank}', 'w')\ntime.sleep(60)",
    )

    def stop() -> None:
        while len(list(Path().glob("up-*"))) < 2:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.01, stop).start()
    with pytest.raises(Stopped):
        processes.launched_together(2, ["train"])
    assert signal.getsignal(signal.SIGTERM) is before


def by_command_line(method: str, **changes: Any) -> subprocess.Popen[str]:
    PARAMS_FILE.write_text(yaml.safe_dump(settings(**changes).model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "vap", "train", "own", method]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("method", [pytest.param("uvit", marks=pytest.mark.slow), "vap"])
def test_two_processes_by_the_command_line_train_what_one_trains(method: str) -> None:
    one = weights(method)
    log = Path(f"results/models/own/{method}/train.csv")
    losses = np.genfromtxt(log, delimiter=",", names=True)
    together = by_command_line(method, compute__processes=2)
    _, said = together.communicate(timeout=180)
    assert together.returncode == 0, said
    assert_near(load_file(f"results/models/own/{method}/model.safetensors"), one)
    found = np.genfromtxt(log, delimiter=",", names=True)
    monitors = {"recon_share", "feature_std", "uneven_error"}  # of each process's images
    for name in set(losses.dtype.names) - monitors:
        np.testing.assert_allclose(found[name], losses[name], atol=1e-5)


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes() -> None:
    longer = {"method__vap__train__steps": 60, "train__checkpoint_every": 10}
    weights("vap", **longer)
    result = Path("results/models/own/vap")
    whole = file_sha256(result)
    shutil.rmtree(result)
    running = by_command_line("vap", **longer)
    deadline = time.monotonic() + 120
    while not list(Path("work/train").glob("*/step-*")) and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.005)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not result.exists()
    again = by_command_line("vap", **longer)
    _, said = again.communicate(timeout=180)
    assert again.returncode == 0, said
    assert "train own vap: resumed" in said
    assert file_sha256(result) == whole


def test_the_command_line_starts_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(processes, "launched_together", lambda *args: asked.append(args) or True)
    monkeypatch.setattr(cli, "_params", lambda *_: settings(compute__processes=2))
    for words in (["train", "own", "uvit"], ["sample", "own", "uvit", "seen"]):
        monkeypatch.setattr("sys.argv", ["vap", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code in (0, None)
        assert asked[-1] == (2, words)
