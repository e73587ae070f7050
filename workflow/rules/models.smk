# Requires the latents, and for methods under learns_from.prompts the prompt bank.
# Makes results/models/DATASET/METHOD/ and results/samples/DATASET/METHOD-seen.arrow.


def stage_of(verb):
    """DVC's name of a method's stage: what the method learns from decides its inputs."""
    return lambda w: f"{verb}-{PARAMS.kind(w.method)}@{w.dataset}-{w.method}"


def stage_mark(verb):
    return lambda w: MARKS / stage_of(verb)(w)


def stage_code(verb):
    return lambda w: code(f"{verb}-{PARAMS.kind(w.method)}", method=w.method)


def prompts(wildcards):
    """The prompt bank, for the methods that are conditioned on descriptions."""
    return ["data/prompts/{dataset}.arrow"] if PARAMS.kind(wildcards.method) == "prompts" else []


rule train:
    """One method on one dataset."""
    input:
        stage_mark("train"),
        stage_code("train"),
        prompts,
        "data/latents/{dataset}.arrow",
    output:
        "results/models/{dataset}/{method}/config.json",
        "results/models/{dataset}/{method}/model.safetensors",
        "results/models/{dataset}/{method}/train.csv",
    params:
        settings=params_of("seed", "train", "method.{method}.model", "method.{method}.train"),
        stage=stage_of("train"),
    log:
        "logs/train/{dataset}-{method}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Training {wildcards.method} on {wildcards.dataset}"
    shell:
        RUN + " {params.stage} 2>&1 | tee {log}"


rule sample:
    """Images from a trained method."""
    input:
        stage_mark("sample"),
        stage_code("sample"),
        prompts,
        "data/autoencoders/{dataset}/config.json",
        "data/autoencoders/{dataset}/diffusion_pytorch_model.safetensors",
        "results/models/{dataset}/{method}/config.json",
        "results/models/{dataset}/{method}/model.safetensors",
    output:
        "results/samples/{dataset}/{method}-seen.arrow",
        "results/samples/{dataset}/{method}-seen.png",
    params:
        settings=params_of("seed", "sample", "method.{method}.sample"),
        stage=stage_of("sample"),
    log:
        "logs/sample/{dataset}-{method}-seen.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Sampling {wildcards.method} on {wildcards.dataset}"
    shell:
        RUN + " {params.stage} 2>&1 | tee {log}"
