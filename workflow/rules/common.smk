# What the rules share: params.yaml checked, DVC's stale marks, and how a stage is run.
from snakemake.exceptions import WorkflowError

from vap import pipeline
from vap.errors import VapError
from vap.pipeline import MARKS, code

try:
    PARAMS = pipeline.set_up(config, main_process=workflow.is_main_process)
except VapError as error:
    raise WorkflowError(str(error)) from None


def params_of(*keys):
    """A rule's params: the keys of params.yaml that the stage depends on, with their values."""
    return lambda w: pipeline.settings(config, *(key.format(**w) for key in keys))


def stage_of(verb):
    """DVC's name of a method's stage: what the method learns from decides its inputs."""
    return lambda w: f"{verb}-{family(w.method)}@{w.dataset}-{w.method}"


def family(method):
    """What a method learns from; of one that lacks a part, that it is an ablation."""
    return "ablation" if method in config["ablation"]["without"] else PARAMS.kind(method)


def stage_mark(verb):
    return lambda w: MARKS / stage_of(verb)(w)


def stage_code(verb):
    return lambda w: code(f"{verb}-{family(w.method)}", method=w.method)


def examples(wildcards):
    """What a method learns from: images or latents, and the prompt bank where descriptions condition it."""
    kind = PARAMS.kind(wildcards.method)
    data = "prepared" if kind in ("images", "adversary") else "latents"
    return [f"data/{data}/{{dataset}}.arrow", *prompts(wildcards)]


def prompts(wildcards):
    """The prompt bank, for the methods that are conditioned on descriptions."""
    return ["data/prompts/{dataset}.arrow"] if PARAMS.kind(wildcards.method) == "prompts" else []


def decoder(wildcards):
    """The autoencoder, for the methods that draw latents."""
    if PARAMS.kind(wildcards.method) in ("images", "adversary"):
        return []
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return [f"data/autoencoders/{{dataset}}/{file}" for file in files]


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    method="|".join([*config["methods"], *config["ablation"]["without"]]),
