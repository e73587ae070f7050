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


onstart:
    pipeline.warm_up(PARAMS, local=workflow.is_main_process and workflow.local_exec)


# ── Table 2 ──
ABLATION = config["ablation"]


def unseen(name):
    """DVC's name of an ablation's stage: what a method draws under a condition, or a method that lacks a part."""
    return lambda w: (
        f"{name}-ablation@{w.dataset}-{w.method}"
        if w.condition == "seen"
        else f"{name}-unseen@{w.dataset}-{w.method}-{w.condition}"
    )


def unseen_code(name):
    def files(w):
        if w.condition == "seen":
            return code(f"{name}-ablation", method=w.method)
        return code(f"{name}-unseen", method=w.method)

    return files


def banks(wildcards):
    """The own bank, or under a condition all of them: descriptions may come from another dataset."""
    if wildcards.condition == "seen":
        return ["data/prompts/{dataset}.arrow"]
    return [f"data/prompts/{dataset}.arrow" for dataset in config["datasets"]]


def unseen_settings(wildcards):
    keys = ["seed", "sample", f"method.{wildcards.method}.sample"]
    if wildcards.condition != "seen":
        keys.append("ablation.other")
    return pipeline.settings(config, *keys)


# ── Table 3 ──
try:
    PARAMS.check_sources()
except VapError as error:
    raise WorkflowError(str(error)) from None


DOWNSTREAM = config["downstream"]


def classify_stage(wildcards):
    """DVC's name of a classifier's stage: real images alone have a stage without samples among its inputs."""
    item = f"{wildcards.dataset}-{wildcards.classifier}-{wildcards.ratio}"
    return f"classify@{item}" if wildcards.source == "none" else f"classify-plus@{item}-{wildcards.source}"


def synthetic_images(wildcards):
    """The samples that a classifier sees beside real images."""
    return [] if wildcards.source == "none" else ["results/samples/{dataset}/{source}-seen.arrow"]


def classify_settings(wildcards):
    """The keys of params.yaml that a classifier's stage depends on, with their values."""
    keys = [
        "seed",
        f"downstream.classifier.{wildcards.classifier}",
        "downstream.test",
        "downstream.weight_decay",
        "downstream.warmup",
        "downstream.label_smoothing",
        "downstream.precision",
        "downstream.augment",
    ]
    if wildcards.source != "none":
        keys += [
            "downstream.generator_data",
            "downstream.synthetic",
            "downstream.synthetic_balance",
            "downstream.real_share",
        ]
    return pipeline.settings(config, *keys)


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    method="|".join([*config["methods"], *config["ablation"]["without"]]),
