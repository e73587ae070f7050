# Requires the samples. Makes results/metrics/, results/tables/, results/figures/ and the report.


rule floor:
    """The metrics of real images against other real images."""
    input:
        MARKS / "floor@{dataset}",
        "data/prepared/{dataset}.arrow",
    output:
        "results/metrics/{dataset}/real.json",
    log:
        "logs/floor/{dataset}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Measuring {wildcards.dataset} against itself"
    shell:
        "vap stage floor@{wildcards.dataset} 2>&1 | tee {log}"


rule evaluate:
    """The metrics of the samples against real images."""
    input:
        MARKS / "evaluate@{dataset}-{method}",
        "data/prepared/{dataset}.arrow",
        "results/samples/{dataset}/{method}-seen.arrow",
    output:
        "results/metrics/{dataset}/{method}-seen.json",
    log:
        "logs/evaluate/{dataset}-{method}-seen.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Measuring {wildcards.method} on {wildcards.dataset}"
    shell:
        "vap stage evaluate@{wildcards.dataset}-{wildcards.method} 2>&1 | tee {log}"


rule table:
    """The paper's Table 1."""
    input:
        MARKS / "table",
        expand(
            "results/metrics/{dataset}/{method}-seen.json",
            dataset=config["datasets"],
            method=config["methods"],
        ),
        expand("results/metrics/{dataset}/real.json", dataset=config["datasets"]),
    output:
        report("results/tables/table1.csv", caption="../report/table1.rst", category="Tables"),
        "results/tables/table1.md",
    log:
        "logs/table.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
    message:
        "Writing Table 1"
    shell:
        "vap stage table 2>&1 | tee {log}"


rule figure:
    """A page of real images and of each method's samples."""
    input:
        MARKS / "figure@{dataset}",
        "data/prepared/{dataset}.arrow",
        expand(
            "results/samples/{{dataset}}/{method}-seen.{suffix}",
            method=[
                *config["methods"],
                *shares(),
            ],  # all that stands in that folder; it shows the methods' own
            suffix=["arrow", "png"],
        ),
    output:
        report("results/figures/{dataset}.png", caption="../report/figure.rst", category="Figures"),
    log:
        "logs/figure/{dataset}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
    message:
        "Drawing {wildcards.dataset}"
    shell:
        "vap stage figure@{wildcards.dataset} 2>&1 | tee {log}"


rule report:
    """All of it on one page, and the numbers that are compared."""
    input:
        MARKS / "report",
        expand(
            "data/{file}",
            file=[
                f"{folder}/{dataset}.{suffix}"
                for folder, suffix in [("prepared", "arrow"), ("captions", "parquet"), ("prompts", "arrow")]
                for dataset in config["datasets"]
            ],
        ),
        expand(
            "data/autoencoders/{dataset}/{file}",
            dataset=config["datasets"],
            file=["config.json", "diffusion_pytorch_model.safetensors", "reconstruction.json"],
        ),
        expand(
            "results/models/{dataset}/{method}/{file}",
            dataset=config["datasets"],
            method=RUNS,
            file=["config.json", "model.safetensors", "train.csv"],
        ),
        expand(
            "results/samples/{dataset}/{method}-seen.{suffix}",
            dataset=config["datasets"],
            method=[*config["methods"], *shares()],
            suffix=["arrow", "png"],
        ),
        expand("results/tables/table{number}.{suffix}", number=[1, 2, 3], suffix=["csv", "md"]),
        expand("results/figures/{dataset}.png", dataset=config["datasets"]),
    output:
        report("results/report.html", caption="../report/report.rst", category="Report"),
        "results/distances.csv",
        directory("results/summary"),
    log:
        "logs/report.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    message:
        "Writing the report"
    shell:
        "vap stage report 2>&1 | tee {log}"
