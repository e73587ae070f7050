# Requires data/raw/DATASET. Makes data/prepared/DATASET.arrow, data/latents/DATASET.arrow and the autoencoder.


rule prepare:
    """Raw images to one Arrow file at the working resolution, split."""
    input:
        MARKS / "prepare@{dataset}",
        raw="data/raw/{dataset}",
    output:
        "data/prepared/{dataset}.arrow",
    log:
        "logs/prepare/{dataset}.log",
    priority: 10  # all else waits for it
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    message:
        "Preparing {wildcards.dataset}"
    shell:
        "vap stage prepare@{wildcards.dataset} 2>&1 | tee {log}"


rule latents:
    """The autoencoder f_E, f_D and the moments of every image."""
    input:
        MARKS / "latents@{dataset}",
        "data/prepared/{dataset}.arrow",
    output:
        "data/autoencoders/{dataset}/config.json",
        "data/autoencoders/{dataset}/diffusion_pytorch_model.safetensors",
        "data/autoencoders/{dataset}/reconstruction.json",
        "data/latents/{dataset}.arrow",
    log:
        "logs/latents/{dataset}.log",
    priority: 10
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Encoding the images of {wildcards.dataset}"
    shell:
        "vap stage latents@{wildcards.dataset} 2>&1 | tee {log}"
