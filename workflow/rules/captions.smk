# Requires data/prepared/DATASET.arrow. Makes data/captions/DATASET.parquet and data/prompts/DATASET.arrow.


rule caption:
    """The three questions of VAPS about every image."""
    input:
        MARKS / "caption@{dataset}",
        code("caption"),
        "data/prepared/{dataset}.arrow",
    output:
        "data/captions/{dataset}.parquet",
    params:
        settings=params_of(
            "seed",
            "dataset.{dataset}.modality",
            "caption.server",
            "caption.model",
            "caption.questions",
            "caption.max_tokens",
            "caption.temperature",
        ),
    log:
        "logs/caption/{dataset}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    message:
        "Describing the images of {wildcards.dataset}"
    shell:
        RUN + " caption@{wildcards.dataset} 2>&1 | tee {log}"


rule encode:
    """Descriptions to the class-specific prompt bank (CSPB)."""
    input:
        MARKS / "encode@{dataset}",
        code("encode"),
        "data/captions/{dataset}.parquet",
        "data/prepared/{dataset}.arrow",
    output:
        "data/prompts/{dataset}.arrow",
    params:
        settings=params_of("encode"),
    log:
        "logs/encode/{dataset}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Encoding the descriptions of {wildcards.dataset}"
    shell:
        RUN + " encode@{wildcards.dataset} 2>&1 | tee {log}"
