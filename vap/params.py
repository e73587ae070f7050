"""The typed schema of params.yaml.

No setting has a default here: params.yaml is whole, so what a run used can be read in one file,
and an unknown, missing or mistyped key is one clear line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml

PARAMS_FILE = Path("params.yaml")
ABSENT = "run from the project's folder, or `vap profile demo`"  # what to do without it

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
PositiveInt = Annotated[int, Field(ge=1)]
Percent = Annotated[str, Field(pattern=r"^([1-9][0-9]?|100)$")]  # as text: it is a part of stage names
Label = Annotated[str, Field(min_length=1)]
FIGURE_PIXELS = 2**29  # 1.6 GB while it is drawn
RUN_NAME = re.compile(r"(?P<method>.+)_(?:seed(?P<seed>\d+)|data(?P<percent>\d+))")
QUESTIONS = Path(__file__).parent / "captioning" / "questions"


def _modality(value: str) -> str:
    """A modality is known by its question file."""
    known = sorted(path.stem for path in QUESTIONS.glob("*.yaml"))
    if value not in known:
        raise ValueError(f"a name with a question file {QUESTIONS.name}/NAME.yaml: {', '.join(known)}")
    return value


def _server(value: object) -> str | list[str]:
    """A server of our own, or where one or several others are."""
    urls = [value] if isinstance(value, str) else value
    if value in ("measured", "vllm"):
        return str(value)
    if (
        not isinstance(urls, list)
        or not urls
        or not all(isinstance(url, str) and re.match("https?://.", url) for url in urls)
        or len(set(urls)) < len(urls)
    ):
        raise ValueError("measured, vllm, http://HOST:PORT/v1, or a list of such URLs, each once")
    return value if isinstance(value, str) else urls


def _features(value: str) -> str:
    """A network whose features images are compared by."""
    known = ("efficientnet-lite0", "inception", "vgg16")
    if value not in known and not re.fullmatch(r"timm:[\w.-]+", value):
        raise ValueError(f"{', '.join(known)} or timm:NAME")
    return value


Modality = Annotated[str, AfterValidator(_modality)]
Features = Annotated[str, AfterValidator(_features)]
Kind = Literal["images", "latents", "prompts"]


def run_parts(name: str) -> tuple[str, int | None, int | None]:
    """What a run's name says: its method, its seed and its percent of the images, None where it says none."""
    found = RUN_NAME.fullmatch(name)
    if found is None:
        return name, None, None
    seed, percent = (int(part) if part else None for part in found.group("seed", "percent"))
    return found["method"], seed, percent


def method_of(name: str) -> str:
    """The method of a run, by the run's name alone."""
    return run_parts(name)[0]


def seed_run(method: str, seed: int) -> str:
    """The name of a method's run with another seed."""
    return f"{method}_seed{seed}"


def share_run(method: str, percent: int) -> str:
    """The name of a method's run on a share of the training images."""
    return f"{method}_data{percent}"


class Section(BaseModel):
    """A mapping of params.yaml: every key known, none mistyped, values never coerced from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PlainDatasetParams(Section):
    adapter: Literal["phantom", "isic2018", "folder"]
    modality: Modality


class Isic2019Params(Section):
    adapter: Literal["isic2019"]
    modality: Modality
    split: Literal["lesion", "image"]
    exclude_isic2018: bool


class ChestXray14Params(Section):
    adapter: Literal["chestxray14"]
    modality: Modality
    table: Literal["v2020", "2017"]
    split: Literal["official", "patient"]
    include_no_finding: bool


class ColonoscopyParams(Section):
    adapter: Literal["colonoscopy"]
    modality: Modality
    parts: Annotated[list[Literal["polypsset", "sun", "mesejo", "private"]], Field(min_length=1)]
    classes: Annotated[dict[str, Label | None], Field(min_length=1)]


DatasetParams = Annotated[
    PlainDatasetParams | Isic2019Params | ChestXray14Params | ColonoscopyParams,
    Field(discriminator="adapter"),
]


class PrepareParams(Section):
    image_size: Annotated[int, Field(ge=8, le=2048, multiple_of=8)]
    fit: Literal["squash", "crop"]
    crop_borders: bool
    max_train: PositiveInt | None
    max_test: PositiveInt | None
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    on_error: Literal["stop", "skip"]
    storage: Literal["png", "png-fast", "raw"]


class VllmParams(Section):
    """`vllm serve`, where caption.server is vllm."""

    command: Annotated[str, Field(min_length=1)]
    model: str | None
    revision: str | None
    dtype: str
    max_model_len: PositiveInt | None
    tensor_parallel_size: PositiveInt
    data_parallel_size: PositiveInt
    args: list[str]
    env: dict[str, str]
    start_timeout: Annotated[float, Field(gt=0)]


class CaptionParams(Section):
    server: Annotated[str | list[str], PlainValidator(_server)]
    model: Annotated[str, Field(min_length=1)]
    questions: PositiveInt
    steps: Literal["impression", "impression+knowledge", "all"]
    step2: Literal["shared", "per_image"]
    leave_out: list[str]
    max_image_side: Annotated[int, Field(ge=8)] | None
    max_tokens: PositiveInt
    temperature: Annotated[float, Field(ge=0)]
    max_failed: Annotated[float, Field(ge=0, le=1)]
    concurrency: PositiveInt
    timeout: Annotated[float, Field(gt=0)]
    vllm: VllmParams


class EncodeParams(Section):
    encoder: Annotated[str, Field(min_length=1)]
    dtype: Literal["fp16", "bf16", "int8"]
    max_tokens: Annotated[int, Field(ge=3)]
    batch_size: PositiveInt


class AutoencoderTrainParams(Section):
    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    patch: PositiveInt
    channels: Annotated[list[Annotated[int, Field(ge=8, multiple_of=8)]], Field(min_length=1)]
    latent_channels: PositiveInt
    kl_weight: Annotated[float, Field(ge=0)]


class LinearParams(Section):
    patch: PositiveInt
    latent_channels: PositiveInt
    noise: Annotated[float, Field(ge=0)]
    images: PositiveInt | None

    @model_validator(mode="after")
    def _not_more_than_there_is(self) -> LinearParams:
        if self.latent_channels > 3 * self.patch**2:
            raise ValueError(f"'latent_channels' must be at most 3 * patch² = {3 * self.patch**2}")
        return self


class FinetuneParams(Section):
    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]


class LatentsParams(Section):
    autoencoder: Literal["linear", "train", "kl", "taesd"]
    path: str | None
    scale: Annotated[float, Field(gt=0)] | None
    batch_size: PositiveInt
    linear: LinearParams
    train: AutoencoderTrainParams
    finetune_decoder: FinetuneParams | None
    lpips_path: str | None

    @property
    def pretrained(self) -> bool:
        """Whether the weights come from `path`."""
        return self.autoencoder in ("kl", "taesd")

    @property
    def weights(self) -> Path:
        """The folder of the weights, where they are `pretrained`."""
        assert self.path is not None
        return Path(self.path)

    @model_validator(mode="after")
    def _path_where_needed(self) -> LatentsParams:
        if self.pretrained and self.path is None:
            raise ValueError(f"'path' must name the weights' folder of autoencoder: {self.autoencoder}")
        return self


class ScheduleParams(Section):
    kind: Literal["scaled_linear", "linear"]
    timesteps: Annotated[int, Field(ge=2)]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _noise_grows(self) -> ScheduleParams:
        if self.beta_start > self.beta_end:
            raise ValueError(f"'beta_start' {self.beta_start} must be at most 'beta_end' {self.beta_end}")
        return self


class TrainParams(Section):
    precision: Literal["fp32", "bf16", "fp16"]
    ema_warmup: bool
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    schedule: ScheduleParams


Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]


class _AsWritten(BaseModel):
    """A section that is dumped as it was written, without the values of keys that it does not have."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class MethodTrainParams(_AsWritten):
    """A method's training: which keys it has is its module's to say. Those of most are checked here too, so
    that a wrong value is told before the first stage runs.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Betas = []
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] | None = None


class MethodSampleParams(_AsWritten):
    """A method's sampling, in the same way."""

    guidance_scale: Annotated[float, Field(ge=0)] = 1.0


class MethodParams(Section):
    model: dict[str, Any]
    train: MethodTrainParams
    sample: MethodSampleParams


class SamplerParams(Section):
    """A diffusion sampler."""

    sampler: Literal["dpmpp", "ddim", "ddpm"]
    order: Literal[1, 2, 3]
    spacing: Literal["quadratic", "logsnr", "uniform"]
    variance: Literal["posterior", "beta", "learned"]
    steps: PositiveInt


class SampleParams(SamplerParams):
    n: PositiveInt
    batch_size: PositiveInt
    labels: Literal["empirical", "uniform", "paper-released"]
    precision: Literal["fp32", "bf16"]


class EvaluateParams(Section):
    features: Features
    features_path: str | None
    prc_features: Features | None
    prc_features_path: str | None
    reference: Literal["train", "test"]
    n: Annotated[int, Field(ge=2)]
    neighbours: PositiveInt
    isc_splits: PositiveInt
    kid_subsets: PositiveInt
    kid_subset_size: Annotated[int, Field(ge=2)]
    prd: bool
    bootstrap: Annotated[int, Field(ge=0)]
    class_n: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt

    @model_validator(mode="after")
    def _path_where_needed(self) -> EvaluateParams:
        for key in self.with_weights:
            if getattr(self, f"{key}_path") is None:
                raise ValueError(f"'{key}_path' must name the weights' file of {key}: {getattr(self, key)}")
        return self

    @property
    def with_weights(self) -> list[str]:
        """Which of features and prc_features are of a network whose weights are a local file, KEY_path."""
        keys = ("features", "prc_features")
        return [key for key in keys if getattr(self, key) not in ("efficientnet-lite0", None)]


class ClassifierParams(Section):
    """A network of timm."""

    model: Annotated[str, Field(min_length=1)]
    weights: str | None
    image_size: Annotated[int, Field(ge=16, le=2048)]
    steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    lr: Annotated[float, Field(gt=0)]


class AugmentParams(Section):
    flip_horizontal: bool
    flip_vertical: bool
    shift: Annotated[float, Field(ge=0, le=0.5)]
    color: Annotated[float, Field(ge=0, lt=1)]


class DownstreamParams(Section):
    """Classifiers trained on real and synthetic images (Table 3)."""

    classifiers: Annotated[list[Name], Field(min_length=1)]
    ratios: Annotated[list[Percent], Field(min_length=1)]
    sources: list[Name]
    classifier: dict[Name, ClassifierParams]
    generator_ratios: list[Percent]
    synthetic: PositiveInt | None
    synthetic_balance: Literal["as_sampled", "balanced"]
    real_share: Annotated[float, Field(gt=0, lt=1)] | None
    test: Literal["test", "val"]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["fp32", "bf16"]
    augment: AugmentParams

    @model_validator(mode="after")
    def _lists_agree(self) -> DownstreamParams:
        for kind in ("classifiers", "ratios", "sources"):
            names = getattr(self, kind)
            if len(set(names)) != len(names):
                raise ValueError(f"downstream.{kind} names one twice: {names}")
        if unknown := [name for name in self.classifiers if name not in self.classifier]:
            raise ValueError(f"classifiers names {unknown[0]!r}, which has no entry under classifier")
        if "none" in self.sources:
            raise ValueError("'none' is the name of real images alone, which are always there")
        if odd := [ratio for ratio in self.generator_ratios if ratio not in self.ratios or ratio == "100"]:
            raise ValueError(f"generator_ratios names {odd[0]!r}: it holds some of ratios, all below 100")
        return self


class AblationParams(Section):
    """Table 2."""

    full: Name
    plain: Name
    without: list[Name]
    methods: list[Name]
    conditions: list[Literal["unseen", "shuffled"]]
    across: list[Literal["other"]]
    other: dict[Name, Name]

    @model_validator(mode="after")
    def _names_fit(self) -> AblationParams:
        if odd := [name for name in self.without if "_without_" not in name]:
            raise ValueError(f"'without' names {odd[0]!r}; an ablation is named METHOD_without_PART")
        if self.methods != [self.full, *self.without]:
            raise ValueError(f"'methods' must be 'full' and 'without' together: {[self.full, *self.without]}")
        return self


class FigureParams(Section):
    columns: Annotated[int, Field(ge=1, le=1000)]
    font: str | None
    zoom: Annotated[int, Field(ge=1, le=16)]  # times prepare.image_size, a side of one of the images


COMPILE_PAYS = 1000  # passes of a network from which compiling it on a GPU saves more time than it takes


class ComputeParams(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: PositiveInt
    processes: PositiveInt
    warm_start: bool
    compile: Literal["auto"] | bool
    cuda_graphs: bool
    deterministic: bool
    micro_batch: PositiveInt | None
    preview_every: PositiveInt | None

    def compile_mode(self, device_type: str, passes: int) -> str | None:
        """The mode of torch.compile for a network; None: do not compile it.

        Args:
            device_type: where it computes.
            passes: how often a batch goes through it, from which "auto" sees whether the minute is repaid.
        """
        gpu = device_type == "cuda"
        if not (gpu and passes >= COMPILE_PAYS if self.compile == "auto" else self.compile):
            return None
        return "reduce-overhead" if gpu and self.cuda_graphs else "default"


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    datasets: Annotated[list[Name], Field(min_length=1)]
    methods: Annotated[list[Name], Field(min_length=1)]
    learns_from: dict[Kind, list[Name]]
    dataset: dict[Name, DatasetParams]
    prepare: PrepareParams
    caption: CaptionParams
    encode: EncodeParams
    latents: LatentsParams
    train: TrainParams
    method: dict[Name, MethodParams]
    sample: SampleParams
    evaluate: EvaluateParams
    downstream: DownstreamParams
    ablation: AblationParams
    figure: FigureParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _lists_agree(self) -> Params:
        for kind, names in (("datasets", self.datasets), ("methods", self.methods)):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names one twice: {names}")
        for kind, names, known in (
            ("datasets", self.datasets, self.dataset),
            ("methods", self.rows, self.method),
            ("ablation.without", self.ablation.without, self.method),
        ):
            if unknown := [name for name in names if name not in known]:
                entry = "dataset" if kind == "datasets" else "method"
                raise ValueError(f"{kind} names {unknown[0]!r}, which has no entry under {entry}")
        if odd := [name for name in self.methods if "_without_" in name]:
            raise ValueError(f"methods names {odd[0]!r}, an ablation: its place is ablation.without")
        self._check_runs()
        side = self.prepare.image_size * self.figure.zoom
        if (pixels := (1 + len(self.rows)) * self.figure.columns * side**2) > FIGURE_PIXELS:
            raise ValueError(
                f"figures of at most {FIGURE_PIXELS:,} pixels, not {pixels:,}: lower figure.zoom"
            )
        return self

    def _check_runs(self) -> None:
        """Each run stands once under what its method learns from: these lists are matrices of dvc.yaml."""
        for name in self.methods:
            method, seed, percent = run_parts(name)
            if percent is not None:
                raise ValueError(f"methods names {name!r}, a run for Table 3: its place is learns_from")
            if method not in self.methods:
                raise ValueError(f"methods names {name!r} without {method!r} itself")
            if seed is not None and (name != seed_run(method, seed) or seed == self.seed):
                raise ValueError(f"methods names {name!r}: N of METHOD_seedN is another than seed")
        own = self.downstream
        shares = [share_run(m, int(percent)) for m in own.sources for percent in own.generator_ratios]
        listed = [name for names in self.learns_from.values() for name in names]
        if sorted(listed) != sorted([*self.methods, *shares]):
            more = f" and, for downstream.generator_ratios, {shares}" if shares else ""
            raise ValueError(f"learns_from must name each of methods{more} once: it has {listed}")
        for names in self.learns_from.values():
            if odd := [name for name in names if method_of(name) not in names]:
                raise ValueError(f"learns_from names {odd[0]!r} elsewhere than {method_of(odd[0])!r}")
        items = [f"{dataset}-{name}" for dataset in self.datasets for name in listed]
        if clash := sorted({item for item in items if items.count(item) > 1}):
            raise ValueError(f"two stages would both be named {clash[0]!r}: rename a dataset or a method")

    @property
    def rows(self) -> list[str]:
        """`methods` without their runs with further seeds."""
        return list(dict.fromkeys(map(method_of, self.methods)))

    def seeds_of(self, method: str) -> list[int]:
        """The further seeds with which a method is trained and sampled once more."""
        runs = map(run_parts, self.methods)
        return [seed for own, seed, _ in runs if own == method and seed is not None]

    def check_sources(self) -> None:
        """Refuse a source of Table 3 that is no method; asked for by what makes that table alone.

        Raises:
            VapError: downstream.sources names one that methods lacks.
        """
        for name in self.downstream.sources:
            if name not in self.methods:
                expected = f"some of methods: {', '.join(self.methods)}"
                fix = "add it to methods, or leave it out"
                raise VapError(f"{PARAMS_FILE}: downstream.sources", repr(name), expected, fix)

    def other_of(self, dataset: str) -> str:
        """The dataset whose descriptions `dataset` is drawn from under the condition "other".

        Raises:
            VapError: ablation.other has no such entry, or it names none of the other datasets.
        """
        found = self.ablation.other.get(dataset)
        others = [name for name in self.datasets if name != dataset]
        if found not in others:
            raise VapError(
                f"{PARAMS_FILE}: ablation.other.{dataset}",
                "no such key" if found is None else repr(found),
                f"one of {', '.join(others)}" if others else "a second one among datasets",
                "correct it, or leave the condition out with ablation.across: []",
            )
        return found

    def kind(self, name: str) -> Kind:
        """What a method, or a run of one, is trained on."""
        if name in self.ablation.without:
            return "prompts"
        return next(kind for kind, names in self.learns_from.items() if name in names)


def first_problem(error: ValidationError) -> tuple[str, str, str]:
    """(key, found, expected) of a validation error's first problem; an unknown key before a missing one."""
    problem = min(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    place = list(problem["loc"])
    if place[:1] == ["dataset"]:
        adapter = str(*place[2:3])
        del place[2:3]  # which of DatasetParams it was held against
        if problem["type"] == "extra_forbidden" and len(place) == 3:
            return ".".join(map(str, place)), *_foreign_option(adapter, str(place[2]))
        if problem["type"].startswith("union_tag"):
            context = problem.get("ctx", {})
            found = repr(context["tag"]) if "tag" in context else "no such key"
            expected = f"one of {context['expected_tags']}" if "tag" in context else "a value"
            return ".".join(map(str, [*place, "adapter"])), found, expected
    key = ".".join(map(str, place))
    if problem["type"] == "extra_forbidden":
        return key, "an unknown key", "one of the keys of config/demo.yaml"
    if problem["type"] == "missing":
        return key, "no such key", "a value"
    expected = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", problem["input"]):
        mantissa, exponent = problem["input"].lower().split("e")
        expected += f" (YAML reads this as text; write {mantissa}.0e{exponent})"
    found = "these values" if isinstance(problem["input"], dict) else repr(problem["input"])[:200]
    return key, found, expected[:1].lower() + expected[1:]


def _foreign_option(adapter: str, option: str) -> tuple[str, str]:
    """(found, expected) of a key under dataset.NAME that its adapter does not have."""
    options: dict[str, list[str]] = {}  # of each adapter, beside what all have
    for section in get_args(get_args(DatasetParams)[0]):
        fields = section.model_fields
        own = [name for name in fields if name not in PlainDatasetParams.model_fields]
        options |= dict.fromkeys(get_args(fields["adapter"].annotation), own)
    theirs = [name for name, own in options.items() if option in own]
    found = f"an option of adapter {' and '.join(theirs)}" if theirs else "an unknown key"
    return found, f"an option of adapter {adapter}: {', '.join(options[adapter]) or 'it has none'}"


def parse(data: Any, source: Path = PARAMS_FILE) -> Params:
    """Check `data`, the content of `source`.

    Raises:
        VapError: a key is unknown, missing or mistyped, or the lists disagree.
    """
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        key, found, expected = first_problem(error)
        more = f" ({error.error_count() - 1} more after it)" if error.error_count() > 1 else ""
        where = f"{source}: {key}" if key else str(source)
        raise VapError(where, found, expected, f"edit {source}{more}") from None


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        VapError: the file is absent, not readable or no YAML, has a key twice, or does not fit the schema.
    """
    return parse(read_yaml(path, "the settings", ABSENT), path)
