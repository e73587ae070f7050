# Requires what learns_from says of a method: the prepared images, or the latents, and the prompt bank.
# Makes results/models/DATASET/METHOD/ and results/samples/DATASET/METHOD-seen.arrow; METHOD may be a run's name.


rule train:
    """One method on one dataset."""
    input:
        mark_of(stage_of("train")),
        examples,
    output:
        "results/models/{dataset}/{method}/config.json",
        "results/models/{dataset}/{method}/model.safetensors",
        "results/models/{dataset}/{method}/train.csv",
    log:
        "logs/train/{dataset}-{method}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        stage=stage_of("train"),
    message:
        "Training {wildcards.method} on {wildcards.dataset}"
    shell:
        "vap stage {params.stage} 2>&1 | tee {log}"


rule sample:
    """Images from a trained method."""
    input:
        mark_of(stage_of("sample")),
        prompts,
        decoder,
        model,
    output:
        "results/samples/{dataset}/{method}-seen.arrow",
        "results/samples/{dataset}/{method}-seen.png",
    log:
        "logs/sample/{dataset}-{method}-seen.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        stage=stage_of("sample"),
    message:
        "Sampling {wildcards.method} on {wildcards.dataset}"
    shell:
        "vap stage {params.stage} 2>&1 | tee {log}"
