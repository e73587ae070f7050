"""The cost rule of every command of dvc.yaml. A new command needs one: a test says so."""

from __future__ import annotations

import re
from collections.abc import Callable

from vap.costs.count import Coder, Work, autoencoder, timm_pass
from vap.costs.model import Job, Model, Row, fid_flops, pair_flops, sampling, training
from vap.runs import run_of

STATE = 20  # bytes a parameter in training: weights, gradient, two moments, average, each in float32
CHECKPOINT = 16  # of these in a checkpoint
KEPT = 2  # checkpoints, while one is written
RECONSTRUCTED = 256  # images that the latents stage measures its autoencoder on, at most
HALF = 0.6  # of the activations in bfloat16 over those in float32, norms and losses being float32; assumed
GB, MB = 1e9, 1e6
Bytes = float | None
TORCH = 0.6 * GB  # of a process with torch
NO_COUNT = "images not known until the dataset is prepared"
FEATURES_FP32 = "fp32"  # evaluate, latents and encode compute in float32


def _row(
    model: Model,
    job: Job,
    scales: str,
    seconds: float | None,
    memory: Bytes,
    disk: Bytes,
    *notes: str,
    place: str = "CPU",
    scratch: float = 0.0,
) -> Row:
    hours = None if seconds is None else (seconds + model.start()) / 3600
    return Row(
        job.stage,
        job.item,
        scales,
        place,
        hours,
        None if memory is None else memory / GB,
        None if disk is None else disk / GB,
        model.basis,
        scratch / GB,
        tuple(notes),
    )


def _n(count: int | None, unit: str = "images") -> str:
    return f"{'?' if count is None else format(count, ',')} {unit}"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f} GFLOP" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP"


def _coder(model: Model) -> Coder:
    return autoencoder(model.params.latents.model_dump_json(), model.params.prepare.image_size)


# ── data ────────────────────────────────────────────────────────────────────────────────────────────


def prepare(model: Model, job: Job) -> Row:
    images, own = model.images(job.words[1]), model.params.prepare
    n, notes = images.all, [f"images: {images.source}"]
    entries = model.rates["prepare"]["rates"]
    same = [entry for entry in entries if entry["storage"] == own.storage] or entries
    near = min(same, key=lambda entry: abs(entry["side"] - own.image_size))
    if near["storage"] != own.storage:
        notes.append(f"storage {own.storage} was not measured: as {near['storage']}")
    rate = model.rate(near) * (near["side"] / own.image_size) ** 2
    if near["side"] != own.image_size:
        notes.append(f"from {near['side']} pixels by area")
    seconds = None if n is None else n / rate
    return _row(model, job, _n(n), seconds, near["peak_mb"] * MB, model.stored(n), *notes)


def model_size(name: str) -> tuple[float, float] | None:
    """Parameters of a language model by its name: (all, those that a token uses); None where it has none.

    "Qwen3-VL-8B" has 8e9; "Qwen3-VL-30B-A3B" has 30e9, of which a token uses 3e9.
    """
    found = [float(x) * 1e9 for x in re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z0-9])", name)]
    active = re.search(r"(?<![\w.])[aA](\d+(?:\.\d+)?)[bB](?![a-zA-Z0-9])", name)
    if not found:
        return None
    return found[0], float(active[1]) * 1e9 if active else found[0]


def caption(model: Model, job: Job) -> Row:
    own, rates, images = model.params.caption, model.rates["caption"], model.images(job.words[1])
    n, notes = images.all, []
    if n is None:
        notes.append(NO_COUNT)
    disk = None if n is None else n * rates["row_bytes"]
    with_image = 2 if own.steps == "all" else 1
    calls = with_image + (own.step2 == "per_image" and own.steps != "impression")
    scales = f"{_n(n)} x {calls} answers"
    if own.server == "measured":
        seconds = None if n is None else n / (model.rate(rates["describer"]) * model.params.compute.threads)
        return _row(model, job, scales, seconds, TORCH, disk, *notes)
    name = own.vllm.model or own.model
    size = model_size(name)
    if size is None:
        notes.append(f"size of {name} is not in its name: hours and memory not known")
    if own.server != "vllm":
        notes.append("of the server, wherever it runs")
    if own.server == "vllm" and own.vllm.tensor_parallel_size * own.vllm.data_parallel_size > 1:
        notes.append("hours of all its GPUs together")
    side = min(model.params.prepare.image_size, own.max_image_side or 10**9)
    answer = min(rates["answer_tokens"], own.max_tokens)
    tokens = calls * (rates["question_tokens"] + answer) + with_image * side**2 / rates["pixels_per_token"]
    scales += f" of {answer} tokens"
    if size is None:
        return _row(model, job, scales, None, None, disk, *notes, place=model.place)
    rate = model.rate(model.own["mllm"]) * 1e12 * model.threads(model.device)
    seconds = None if n is None else n * tokens * 2 * size[1] / rate
    return _row(model, job, scales, seconds, size[0] * 2 * 1.2, disk, *notes, place=model.place)


def encode(model: Model, job: Job) -> Row:
    own, images = model.params.encode, model.images(job.words[1])
    n, known = images.all, model.rates["encode"]["encoders"].get(own.encoder)
    width, tokens, notes = model.text()
    limits = [*notes, "at most: every image with a text of its own"]
    if n is None:
        limits.append(NO_COUNT)
    scales = f"{_n(n, 'texts')} x {tokens} tokens"
    number = 1 if own.dtype == "int8" else 2
    disk = None if n is None or known is None else n * tokens * width * number
    if known is None:
        return _row(model, job, scales, None, None, disk, *limits, place=model.place)
    work = Work(2.0 * known["parameters"] * tokens * (n or 0))
    seconds = None if n is None else model.seconds(work, "sample", FEATURES_FP32, "transformer")
    memory = known["parameters"] * 4 * 1.4 + TORCH
    return _row(model, job, scales, seconds, memory, disk, *limits, place=model.place)


def latents(model: Model, job: Job) -> Row:
    own, images, coder = model.params.latents, model.images(job.words[1]), _coder(model)
    n, both, notes = images.all, coder.encode + coder.decode, []
    fp32, family = FEATURES_FP32, "convolution"
    seconds, said, batch = 0.0, [_n(n)], own.batch_size
    if own.autoencoder == "train":
        steps, batch = own.train.steps, max(batch, own.train.batch_size)
        work = Work(both.flops * steps * own.train.batch_size * 3, both.kernels * steps * 3)
        seconds += model.seconds(work, "train", fp32, family)
        said.append(f"{steps:,} steps x {own.train.batch_size}")
    if own.finetune_decoder is not None:
        tune = own.finetune_decoder
        decode = coder.decode
        work = Work(decode.flops * tune.steps * tune.batch_size * 3, decode.kernels * tune.steps * 3)
        seconds += model.seconds(work, "train", fp32, family)
        said.append(f"{tune.steps:,} decoder steps x {tune.batch_size}")
        batch = max(batch, tune.batch_size)
    disk = coder.encode.parameters * 4.0
    whole: float | None = None
    if n is None:
        notes.append(NO_COUNT)
    else:
        checked = RECONSTRUCTED * (2 if own.finetune_decoder is not None else 1)
        per_batch = coder.encode.kernels / own.batch_size
        work = Work(coder.encode.flops * n, per_batch * n) + both * checked
        whole = seconds + model.seconds(work, "sample", fp32, family)
        disk += n * 2.0 * coder.channels * coder.side**2 * 4
    trained = own.autoencoder == "train" or own.finetune_decoder is not None
    held = 3 * coder.decode.largest
    if trained:  # an encoder that is trained keeps about as much as its decoder
        held = coder.decode.activations * (2 if own.autoencoder == "train" else 1)
    memory = coder.encode.parameters * (STATE if trained else 4) + held * batch + TORCH
    total = None if n is None else disk
    return _row(model, job, ", ".join(said), whole, memory, total, *notes, place=model.place)


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────


def train(model: Model, job: Job) -> Row:
    params, (_, dataset, name) = model.params, job.words[:3]
    method = run_of(params, name).method
    own = params.method[method].train
    piece = min(params.compute.micro_batch or own.batch_size, own.batch_size)
    step = training(params, method, model.sizes(dataset, method), piece) * (own.batch_size / piece)
    work = step * own.steps
    seconds = model.seconds(work, "train", params.train.precision, method)
    half = 1.0 if params.train.precision == "fp32" else HALF
    memory = step.parameters * STATE + step.activations * half + TORCH
    notes = model.text()[2] if params.kind(method) == "prompts" else ()
    if model.images(dataset).classes is None and params.kind(method) == "prompts":
        notes = (*notes, "classes not known: 8 assumed")
    scales = f"{own.steps:,} steps x {own.batch_size}, {_giga(step.flops / own.batch_size)} an image"
    disk, scratch = step.parameters * 4.0, step.parameters * CHECKPOINT * KEPT
    return _row(model, job, scales, seconds, memory, disk, *notes, place=model.place, scratch=scratch)


def sample(model: Model, job: Job) -> Row:
    params, (_, dataset, name) = model.params, job.words[:3]
    method = run_of(params, name).method
    own, batch = params.sample, min(params.sample.batch_size, params.sample.n)
    sizes = model.sizes(dataset, method)
    work, steps, passes = sampling(params, method, sizes, batch, model.device)
    batches = own.n / batch
    seconds = model.seconds(work * batches, "sample", own.precision, method)
    memory = work.parameters * 4 + work.largest * 3 + TORCH
    if params.kind(method) in ("latents", "prompts"):
        decode = _coder(model).decode
        seen = Work(decode.flops * own.n, decode.kernels * batches)
        seconds += model.seconds(seen, "sample", FEATURES_FP32, "convolution")
        memory += decode.parameters * 4 + decode.largest * batch * 3
    scales = f"{own.n:,} images x {steps:,} steps x {passes} passes"
    notes = model.text()[2] if params.kind(method) == "prompts" else ()
    disk = model.stored(own.n, storage="png")
    return _row(model, job, scales, seconds, memory, disk, *notes, place=model.place)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────


def _features(model: Model) -> list[tuple[float, int]]:
    """(FLOPs an image, width) of evaluate.features and, where it is another, evaluate.prc_features."""
    own, found = model.params.evaluate, []
    for name in dict.fromkeys([own.features, own.prc_features or own.features]):
        if name.startswith("timm:"):
            work, width = timm_pass(name.removeprefix("timm:"), None)
            found.append((work.flops, width))
        else:
            known = model.rates["features"][name]
            found.append((float(known["flops"]), int(known["width"])))
    return found


def _comparison(model: Model, n: int, m: int, classes: int, matched: bool) -> float:
    """Seconds of all metrics of n against m images.

    Args:
        matched: with fid_train and fid_test.
    """
    own, nets = model.params.evaluate, _features(model)
    d, pairs = nets[0][1], nets[-1][1]
    half = own.bootstrap
    fid = fid_flops(n, m, d) * (3 if matched else 1) + half * fid_flops(n // 2, m // 2, d)
    fid += classes * fid_flops(n // max(classes, 1), m // max(classes, 1), d)
    products = pair_flops(n, m, pairs) + half * pair_flops(n // 2, m // 2, pairs)
    if pairs != d:
        products += own.kid_subsets * pair_flops(own.kid_subset_size, own.kid_subset_size, d)
    return model.algebra(fid, "fid") + model.algebra(products, "pairs")


def _extraction(model: Model, n: int) -> float:
    work = Work(sum(flops for flops, _ in _features(model)) * n)
    return model.seconds(work, "sample", FEATURES_FP32, "convolution")


def _metrics_memory(model: Model, n: int) -> float:
    return TORCH + n * sum(width for _, width in _features(model)) * 4 * 4 + 0.5 * GB


def evaluate(model: Model, job: Job) -> Row:
    own, images = model.params.evaluate, model.images(job.words[1])
    reference = images.train if own.reference == "train" else images.test
    m = min(own.n, reference or own.n)
    notes = ["features of real images are floor's, kept in work/features"]
    if reference is None:
        notes.append(f"at most: {NO_COUNT}")
    seconds = _extraction(model, own.n) + _comparison(model, own.n, m, images.classes or 8, True)
    scales = f"{own.n:,} images, {own.n:,} x {m:,} pairs, {own.bootstrap} half samples"
    disk = own.n * sum(width for _, width in _features(model)) * 4.0
    memory = _metrics_memory(model, own.n + m)
    return _row(model, job, scales, seconds, memory, disk, *notes, place=model.place)


def floor(model: Model, job: Job) -> Row:
    own, images = model.params.evaluate, model.images(job.words[1])
    train = min(2 * own.n, images.train or 2 * own.n)
    test = min(own.n, images.test or own.n)
    half, matched = train // 2, min(test, own.n, train)
    seconds = _extraction(model, train + test)
    for n in (matched, half):
        seconds += _comparison(model, n, n, images.classes or 8, False)
    notes = [f"at most: {NO_COUNT}"] if None in (images.train, images.test) else []
    scales = f"{train + test:,} images, two comparisons of {matched:,} and {half:,}"
    disk = (train + test) * sum(width for _, width in _features(model)) * 4.0
    memory = _metrics_memory(model, train + test)
    return _row(model, job, scales, seconds, memory, disk, *notes, place=model.place)


def classify(model: Model, job: Job) -> Row:
    (_, dataset, classifier), own = job.words[:3], model.params.downstream
    net, images = own.classifier[classifier], model.images(dataset)
    tested = images.test if own.test == "test" else images.val
    once, _ = timm_pass(net.model, net.image_size)
    work = Work(once.flops * net.steps * net.batch_size * 3, once.kernels * net.steps * 3)
    seconds: float | None = model.seconds(work, "train", own.precision, "convolution")
    notes = []
    if tested is None:
        notes.append(f"without the test: {NO_COUNT}")
    else:
        test = Work(once.flops * tested, once.kernels * tested / net.batch_size)
        seconds = (seconds or 0.0) + model.seconds(test, "sample", own.precision, "convolution")
    half = 1.0 if own.precision == "fp32" else HALF
    memory = once.parameters * STATE + once.activations * net.batch_size * half + TORCH + GB  # images held
    scales = (
        f"{net.steps:,} steps x {net.batch_size}, {_giga(once.flops * 3)} an image, {_n(tested, 'tested')}"
    )
    return _row(model, job, scales, seconds, memory, 0.0, *notes, place=model.place)


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────


def page(model: Model, job: Job) -> Row:
    """What only reads results: its start is its cost."""
    side = model.params.prepare.image_size * model.params.figure.zoom
    n = model.params.figure.columns * (1 + len(model.params.rows)) if job.words[0] == "figure" else 0
    disk = model.stored(n, side, "png") if n else 0.0
    return _row(model, job, _n(n) if n else "metrics", 0.0, 0.2 * GB, disk)


def report(model: Model, job: Job) -> Row:
    """The features of the training images, for neighbours: at most 20,000 a dataset. It draws few images."""
    counts = [model.images(dataset).train for dataset in model.params.datasets]
    n = sum(min(count or 20_000, 20_000) for count in counts)
    notes = [f"at most: {NO_COUNT}"] if None in counts else []
    memory = _metrics_memory(model, max(min(count or 20_000, 20_000) for count in counts))
    seconds = _extraction(model, n)
    return _row(model, job, f"{n:,} images", seconds, memory, 5e6, *notes, place=model.place)


RULES: dict[str, Callable[[Model, Job], Row]] = {
    "prepare": prepare,
    "caption": caption,
    "encode": encode,
    "latents": latents,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "floor": floor,
    "classify": classify,
    "table": page,
    "table2": page,
    "table3": page,
    "figure": page,
    "report": report,
}
