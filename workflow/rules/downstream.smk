# Requires the prepared images and the samples of downstream.sources. Makes results/downstream/ and Table 3.
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


rule classify:
    """A classifier trained on a share of the real images, alone or with a method's samples."""
    input:
        lambda w: MARKS / classify_stage(w),
        code("classify"),
        synthetic_images,
        "data/prepared/{dataset}.arrow",
    output:
        "results/downstream/{dataset}/{classifier}-{ratio}-{source}.json",
    log:
        "logs/classify/{dataset}-{classifier}-{ratio}-{source}.log",
    wildcard_constraints:
        classifier="|".join(DOWNSTREAM["classifiers"]),
        ratio="|".join(DOWNSTREAM["ratios"]),
        source="|".join(["none", *DOWNSTREAM["sources"]]),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        settings=classify_settings,
        stage=classify_stage,
    message:
        "Training {wildcards.classifier} on {wildcards.ratio} % of {wildcards.dataset}, synthetic: {wildcards.source}"
    shell:
        "dvc --wait-for-lock repro --single-item {params.stage} 2>&1 | tee {log}"


rule table3:
    """The paper's Table 3."""
    input:
        MARKS / "table3",
        code("table3"),
        expand(
            "results/downstream/{dataset}/{classifier}-{ratio}-{source}.json",
            dataset=config["datasets"],
            classifier=DOWNSTREAM["classifiers"],
            ratio=DOWNSTREAM["ratios"],
            source=["none", *DOWNSTREAM["sources"]],
        ),
    output:
        "results/tables/table3.csv",
        "results/tables/table3.md",
    log:
        "logs/table3.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
    params:
        settings=params_of(
            "datasets",
            "downstream.classifiers",
            "downstream.ratios",
            "downstream.sources",
        ),
    message:
        "Writing Table 3"
    shell:
        "dvc --wait-for-lock repro --single-item table3 2>&1 | tee {log}"
