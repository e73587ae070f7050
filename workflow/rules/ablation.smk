# Requires trained methods and the prompt banks. Makes results/ablation/ and Table 2.
rule sample_ablation:
    """Images of Table 2 alone."""
    input:
        mark_of(unseen("sample")),
        banks,
        decoder,
        model,
    output:
        "results/ablation/{dataset}/{method}-{condition}.arrow",
        "results/ablation/{dataset}/{method}-{condition}.png",
    log:
        "logs/sample/{dataset}-{method}-{condition}.log",
    wildcard_constraints:
        method="|".join(ABLATION["methods"]),
        condition="|".join(["seen", *CONDITIONS]),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        stage=unseen("sample"),
    message:
        "Sampling {wildcards.method} on {wildcards.dataset}: {wildcards.condition}"
    shell:
        "vap stage {params.stage} 2>&1 | tee {log}"


rule evaluate_ablation:
    """The metrics of Table 2 alone."""
    input:
        mark_of(unseen("evaluate")),
        "data/prepared/{dataset}.arrow",
        "results/ablation/{dataset}/{method}-{condition}.arrow",
    output:
        "results/ablation/{dataset}/{method}-{condition}.json",
    log:
        "logs/evaluate/{dataset}-{method}-{condition}.log",
    wildcard_constraints:
        method="|".join(ABLATION["methods"]),
        condition="|".join(["seen", *CONDITIONS]),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        stage=unseen("evaluate"),
    message:
        "Measuring {wildcards.method} on {wildcards.dataset}: {wildcards.condition}"
    shell:
        "vap stage {params.stage} 2>&1 | tee {log}"


rule table2:
    """The paper's Table 2."""
    input:
        MARKS / "table2",
        expand(
            "results/metrics/{dataset}/{method}-seen.json",
            dataset=config["datasets"],
            method=config["methods"],
        ),
        expand("results/metrics/{dataset}/real.json", dataset=config["datasets"]),
        expand(
            "results/ablation/{dataset}/{method}-seen.{suffix}",
            dataset=config["datasets"],
            method=ABLATION["without"],
            suffix=["arrow", "json", "png"],
        ),
        expand(
            "results/ablation/{dataset}/{method}-{condition}.{suffix}",
            dataset=config["datasets"],
            method=ABLATION["methods"],
            condition=CONDITIONS,
            suffix=["arrow", "json", "png"],
        ),
    output:
        report("results/tables/table2.csv", caption="../report/table2.rst", category="Tables"),
        "results/tables/table2.md",
    log:
        "logs/table2.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
    message:
        "Writing Table 2"
    shell:
        "vap stage table2 2>&1 | tee {log}"
