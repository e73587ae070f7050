# What the rules share: params.yaml checked, DVC's stale marks, and which stage of dvc.yaml a job runs.
from snakemake.exceptions import WorkflowError

from vap.common.errors import VapError
from vap.runs import runs_of
from vap.workflow import snakemake as pipeline
from vap.workflow.snakemake import MARKS

try:
    PARAMS = pipeline.set_up(config, main_process=workflow.is_main_process)
except VapError as error:
    raise WorkflowError(str(error)) from None


RUNS = runs_of(PARAMS)  # by name: METHOD, METHOD_seedN and METHOD_dataR
ABLATION = config["ablation"]
CONDITIONS = [*ABLATION["conditions"], *ABLATION["across"]]  # of Table 2, beside seen
DOWNSTREAM = config["downstream"]


def stage_of(verb):
    """DVC's name of a run's stage: what its method learns from decides the entry of dvc.yaml."""

    def name(w):
        without = w.method in ABLATION["without"]
        return f"{verb}-{'ablation' if without else PARAMS.kind(w.method)}@{w.dataset}-{w.method}"

    return name


def mark_of(stage):
    """The mark of a stage whose name is a function of the wildcards."""
    return lambda w: MARKS / stage(w)


def examples(wildcards):
    """What a method learns from: images or latents, and the prompt bank where descriptions condition it."""
    kind = PARAMS.kind(wildcards.method)
    return [f"data/{'prepared' if kind == 'images' else 'latents'}/{{dataset}}.arrow", *prompts(wildcards)]


def prompts(wildcards):
    """The prompt bank, for the methods that are conditioned on descriptions."""
    return ["data/prompts/{dataset}.arrow"] if PARAMS.kind(wildcards.method) == "prompts" else []


def decoder(wildcards):
    """The autoencoder, for the methods that draw latents."""
    if PARAMS.kind(wildcards.method) == "images":
        return []
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return [f"data/autoencoders/{{dataset}}/{file}" for file in files]


def model(wildcards):
    """A trained method."""
    return [
        f"results/models/{{dataset}}/{{method}}/{file}"
        for file in ("config.json", "model.safetensors", "train.csv")
    ]


onstart:
    forced = [job for job in workflow.dag.needrun_jobs() if workflow.dag.reason(job).forced]
    pipeline.force(job.input for job in forced)
    pipeline.warm_up(PARAMS, local=workflow.is_main_process and workflow.local_exec)


# ── Table 2 ──
def unseen(verb):
    """DVC's name of a stage of Table 2: of a method that lacks a part, or of other descriptions."""

    def name(w):
        if w.condition == "seen":
            return f"{verb}-ablation@{w.dataset}-{w.method}"
        kind = "across" if w.condition in ABLATION["across"] else "unseen"
        return f"{verb}-{kind}@{w.dataset}-{w.method}-{w.condition}"

    return name


def banks(wildcards):
    """The own bank; of another dataset's descriptions all of them, since DVC cannot name the other one."""
    if wildcards.condition not in ABLATION["across"]:
        return ["data/prompts/{dataset}.arrow"]
    try:
        PARAMS.other_of(wildcards.dataset)  # before any job runs
    except VapError as error:
        raise WorkflowError(str(error)) from None
    return [f"data/prompts/{name}.arrow" for name in config["datasets"]]


# ── Table 3 ──
try:
    PARAMS.check_sources()
except VapError as error:
    raise WorkflowError(str(error)) from None


def classify_stage(wildcards):
    """DVC's name of a classifier's stage: real images alone have a stage without samples among its inputs."""
    item = f"{wildcards.dataset}-{wildcards.classifier}-{wildcards.ratio}"
    if wildcards.source == "none":
        return f"classify@{item}"
    run = RUNS.get(wildcards.source)
    if run is None or run.percent is None:
        return f"classify-plus@{item}-{wildcards.source}"
    if wildcards.ratio != str(run.percent):
        target = f"{wildcards.classifier}-{wildcards.ratio}-{run.name}"
        fix = f"name {wildcards.classifier}-{run.percent}-{run.name}"
        raise WorkflowError(
            str(VapError(target, f"ratio {wildcards.ratio}", f"{run.percent}, the run's own", fix))
        )
    return f"classify-ratio@{item}-{run.method}"


def shares():
    """The runs on a share of the images."""
    return [run.name for run in RUNS.values() if run.percent is not None]


def scored_sources():
    """RATIO-SOURCE of the scores of Table 3."""
    sources = ["none", *DOWNSTREAM["sources"]]
    own = [f"{ratio}-{source}" for ratio in DOWNSTREAM["ratios"] for source in sources]
    return own + [f"{RUNS[name].percent}-{name}" for name in shares()]


def synthetic_images(wildcards):
    """The samples that a classifier sees beside real images."""
    return [] if wildcards.source == "none" else ["results/samples/{dataset}/{source}-seen.arrow"]


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    method="|".join(RUNS),
