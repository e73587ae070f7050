# What the rules share: params.yaml checked, DVC's stale marks, and how a stage is run.
from snakemake.exceptions import WorkflowError

from vap import pipeline
from vap.errors import VapError
from vap.pipeline import MARKS, code
from vap.runs import runs_of

try:
    PARAMS = pipeline.set_up(config, main_process=workflow.is_main_process)
except VapError as error:
    raise WorkflowError(str(error)) from None


RUNS = runs_of(PARAMS)  # by name: the methods' own, and those that seeds and downstream.generator_data imply


def params_of(*keys):
    """A rule's params: the keys of params.yaml that the stage depends on, with their values."""
    return lambda w: pipeline.settings(config, *(key.format(**w) for key in keys))


def entry_of(verb, run):
    """The entry of dvc.yaml for a run: what its method learns from decides the inputs."""
    parts = [verb]
    if verb != "evaluate":
        without = run.method in config["ablation"]["without"]
        parts.append("ablation" if without else PARAMS.kind(run.method))
    return "-".join([*parts, *filter(None, [run.variant])])


def stage_of(verb):
    """DVC's name of a run's stage."""
    return lambda w: f"{entry_of(verb, RUNS[w.method])}@{w.dataset}-{RUNS[w.method].item}"


def stage_mark(verb):
    return lambda w: MARKS / stage_of(verb)(w)


def stage_code(verb):
    return lambda w: code(entry_of(verb, RUNS[w.method]), method=RUNS[w.method].method)


def run_settings(*keys):
    """As params_of, {method} being the run's method; `seed` is a setting of none that has one in its name."""

    def settings(wildcards):
        run = RUNS[wildcards.method]
        own = [] if run.variant == "seed" else ["seed"]
        return pipeline.settings(config, *own, *(key.format(method=run.method) for key in keys))

    return settings


def runs(*variants):
    """The runs of `methods` of these variants: "" is the methods' own."""
    return [run.name for run in RUNS.values() if run.method in config["methods"] and run.variant in variants]


def kind_of(wildcards):
    """What a run's method learns from."""
    return PARAMS.kind(RUNS[wildcards.method].method)


def examples(wildcards):
    """What a run learns from: images or latents, and the prompt bank where descriptions condition it."""
    kind = kind_of(wildcards)
    data = "prepared" if kind in ("images", "adversary") else "latents"
    return [f"data/{data}/{{dataset}}.arrow", *share(wildcards), *prompts(wildcards)]


def share(wildcards):
    """The prepared images, of which a share is drawn, for the runs on one."""
    return ["data/prepared/{dataset}.arrow"] if RUNS[wildcards.method].variant == "ratio" else []


def prompts(wildcards):
    """The prompt bank, for the methods that are conditioned on descriptions."""
    return ["data/prompts/{dataset}.arrow"] if kind_of(wildcards) == "prompts" else []


def descriptions(wildcards):
    """What descriptions are drawn from: the prompt bank, and the images of a run on a share of them."""
    return [*prompts(wildcards), *share(wildcards)] if prompts(wildcards) else []


def decoder(wildcards):
    """The autoencoder, for the methods that draw latents."""
    if kind_of(wildcards) in ("images", "adversary"):
        return []
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return [f"data/autoencoders/{{dataset}}/{file}" for file in files]


onstart:
    pipeline.warm_up(PARAMS, local=workflow.is_main_process and workflow.local_exec)


# ── Table 2 ──
ABLATION = config["ablation"]
CONDITIONS = [*ABLATION["conditions"], *ABLATION["across"]]  # beside seen


def unseen_entry(verb, condition):
    """The entry of dvc.yaml: of a method that lacks a part, or of what a method draws under a condition."""
    kind = "ablation" if condition == "seen" else "across" if condition in ABLATION["across"] else "unseen"
    return f"{verb}-{kind}"


def unseen(verb):
    """DVC's name of an ablation's stage."""

    def name(w):
        item = "" if w.condition == "seen" else f"-{w.condition}"
        return f"{unseen_entry(verb, w.condition)}@{w.dataset}-{w.method}{item}"

    return name


def unseen_code(verb):
    return lambda w: code(unseen_entry(verb, w.condition), method=w.method)


def banks(wildcards):
    """The own bank; of another dataset's descriptions all of them, since DVC cannot name the other one."""
    if wildcards.condition not in ABLATION["across"]:
        return ["data/prompts/{dataset}.arrow"]
    try:
        PARAMS.other_of(wildcards.dataset)  # before any job runs
    except VapError as error:
        raise WorkflowError(str(error)) from None
    return [f"data/prompts/{name}.arrow" for name in config["datasets"]]


def unseen_settings(wildcards):
    keys = ["seed", "sample", f"method.{wildcards.method}.sample"]
    if wildcards.condition in ABLATION["across"]:
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
    if wildcards.source == "none":
        return f"classify@{item}"
    run = RUNS.get(wildcards.source)
    if run is None or run.variant != "ratio":
        return f"classify-plus@{item}-{wildcards.source}"
    if wildcards.ratio != str(run.percent):
        target = f"{wildcards.classifier}-{wildcards.ratio}-{run.name}"
        fix = f"name {wildcards.classifier}-{run.percent}-{run.name}"
        raise WorkflowError(
            str(VapError(target, f"ratio {wildcards.ratio}", f"{run.percent}, the run's own", fix))
        )
    return f"classify-ratio@{item}-{run.method}"


def scored_sources():
    """RATIO-SOURCE of the scores of Table 3."""
    own = [
        f"{ratio}-{source}" for ratio in DOWNSTREAM["ratios"] for source in ["none", *DOWNSTREAM["sources"]]
    ]
    return own + [f"{run.percent}-{run.name}" for run in RUNS.values() if run.variant == "ratio"]


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
            "downstream.synthetic",
            "downstream.synthetic_balance",
            "downstream.real_share",
        ]
    return pipeline.settings(config, *keys)


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    method="|".join(RUNS),
