# Requires data/prepared/DATASET.arrow. Makes data/captions/DATASET.parquet and data/prompts/DATASET.arrow.


rule caption:
    """The three questions of VAPS about every image."""
    input:
        MARKS / "caption@{dataset}",
        "data/prepared/{dataset}.arrow",
    output:
        "data/captions/{dataset}.parquet",
    log:
        "logs/caption/{dataset}.log",
    priority: 10  # the longest trainings wait for it
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
        vllm=int(config["caption"]["server"] == "vllm"),  # one server at a time: it takes the GPU
    message:
        "Describing the images of {wildcards.dataset}"
    shell:
        "vap stage caption@{wildcards.dataset} 2>&1 | tee {log}"


rule encode:
    """Descriptions to the class-specific prompt bank (CSPB)."""
    input:
        MARKS / "encode@{dataset}",
        "data/captions/{dataset}.parquet",
        "data/prepared/{dataset}.arrow",
    output:
        "data/prompts/{dataset}.arrow",
    log:
        "logs/encode/{dataset}.log",
    priority: 10
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Encoding the descriptions of {wildcards.dataset}"
    shell:
        "vap stage encode@{wildcards.dataset} 2>&1 | tee {log}"
