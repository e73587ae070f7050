"""The typed schema of params.yaml.

No setting has a default here: params.yaml is whole, so what a run used can be read in one file,
and an unknown, missing or mistyped key is one clear line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from vap.errors import VapError

PARAMS_FILE = Path("params.yaml")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
PositiveInt = Annotated[int, Field(ge=1)]
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


Modality = Annotated[str, AfterValidator(_modality)]
Kind = Literal["latents", "prompts"]


class Section(BaseModel):
    """A mapping of params.yaml: every key known, none mistyped, values never coerced from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetParams(Section):
    adapter: Literal["phantom", "isic2018", "folder"]
    modality: Modality


class PrepareParams(Section):
    image_size: Annotated[int, Field(ge=8, le=2048, multiple_of=8)]
    fit: Literal["squash", "crop"]
    max_train: PositiveInt | None
    max_test: PositiveInt | None
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    on_error: Literal["stop", "skip"]


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


class FinetuneParams(Section):
    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]


class LatentsParams(Section):
    autoencoder: Literal["train", "kl", "taesd"]
    path: str | None
    scale: Annotated[float, Field(gt=0)] | None
    batch_size: PositiveInt
    train: AutoencoderTrainParams
    finetune_decoder: FinetuneParams | None
    lpips_path: str | None

    @model_validator(mode="after")
    def _path_where_needed(self) -> LatentsParams:
        if self.autoencoder != "train" and self.path is None:
            raise ValueError(f"'path' must name the weights' folder of autoencoder: {self.autoencoder}")
        return self


class ScheduleParams(Section):
    kind: Literal["scaled_linear", "linear"]
    timesteps: Annotated[int, Field(ge=2)]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]


class TrainParams(Section):
    precision: Literal["fp32", "bf16", "fp16"]
    ema_warmup: bool
    grad_clip: Annotated[float, Field(gt=0)] | None
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    schedule: ScheduleParams


class MethodTrainParams(BaseModel):
    """What every method's training has; a method's own keys are checked by its module."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    warmup_steps: Annotated[int, Field(ge=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    condition_dropout: Annotated[float, Field(ge=0, lt=1)]


class MethodSampleParams(Section):
    guidance_scale: Annotated[float, Field(ge=0)]


class MethodParams(Section):
    model: dict[str, Any]
    train: MethodTrainParams
    sample: MethodSampleParams


class SampleParams(Section):
    n: PositiveInt
    batch_size: PositiveInt
    sampler: Literal["dpmpp", "ddim", "ddpm"]
    order: Literal[1, 2, 3]
    spacing: Literal["quadratic", "logsnr", "uniform"]
    steps: PositiveInt
    labels: Literal["empirical", "uniform"]
    precision: Literal["fp32", "bf16"]


class EvaluateParams(Section):
    features: Literal["efficientnet-lite0", "inception"]
    features_path: str | None
    reference: Literal["train", "test"]
    n: Annotated[int, Field(ge=2)]
    neighbours: PositiveInt
    isc_splits: PositiveInt
    batch_size: PositiveInt

    @model_validator(mode="after")
    def _path_where_needed(self) -> EvaluateParams:
        if self.features == "inception" and self.features_path is None:
            raise ValueError("'features_path' must name the weights' file of features: inception")
        return self


class FigureParams(Section):
    columns: PositiveInt
    zoom: PositiveInt


class ComputeParams(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: PositiveInt
    processes: PositiveInt
    compile: bool
    micro_batch: PositiveInt | None
    preview_every: PositiveInt | None


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
    figure: FigureParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _lists_agree(self) -> Params:
        for kind, names, known in (
            ("datasets", self.datasets, self.dataset),
            ("methods", self.methods, self.method),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names one twice: {names}")
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"{kind} names {unknown[0]!r}, which has no entry under {kind[:-1]}")
        items = [f"{dataset}-{method}" for dataset in self.datasets for method in self.methods]
        if clash := sorted({item for item in items if items.count(item) > 1}):
            raise ValueError(f"two stages would both be named {clash[0]!r}: rename a dataset or a method")
        kinds = [name for names in self.learns_from.values() for name in names]
        if sorted(kinds) != sorted(self.methods):
            raise ValueError(
                f"learns_from must name each of methods once: it has {kinds}, methods has {self.methods}"
            )
        return self

    def kind(self, method: str) -> Kind:
        """What `method` is trained on."""
        return next(kind for kind, names in self.learns_from.items() if method in names)


def first_problem(error: ValidationError) -> tuple[str, str, str]:
    """(key, found, expected) of a validation error's first problem; an unknown key before a missing one."""
    problem = min(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return key, "an unknown key", "one of the keys of config/demo.yaml"
    if problem["type"] == "missing":
        return key, "no such key", "a value"
    expected = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", problem["input"]):
        mantissa, exponent = problem["input"].lower().split("e")
        expected += f" (YAML reads this as text; write {mantissa}.0e{exponent})"
    found = "these values" if isinstance(problem["input"], dict) else repr(problem["input"])
    return key, found, expected[:1].lower() + expected[1:]


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
        VapError: the file is absent, is not YAML, or does not fit the schema.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VapError(
            path,
            "no such file",
            "the settings",
            "run from the project's folder, or `vap profile demo`",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VapError(path, f"no YAML ({error})", "a YAML mapping", "correct the line") from None
    return parse(data, path)
