# Requires the prepared images and the samples of downstream.sources. Makes results/downstream/ and Table 3.
rule classify:
    """A classifier trained on a share of the real images, alone or with a method's samples."""
    input:
        mark_of(classify_stage),
        synthetic_images,
        "data/prepared/{dataset}.arrow",
    output:
        "results/downstream/{dataset}/{classifier}-{ratio}-{source}.json",
    log:
        "logs/classify/{dataset}-{classifier}-{ratio}-{source}.log",
    wildcard_constraints:
        classifier="|".join(DOWNSTREAM["classifiers"]),
        ratio="|".join(DOWNSTREAM["ratios"]),
        source="|".join(["none", *DOWNSTREAM["sources"], *shares()]),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
    params:
        stage=classify_stage,
    message:
        "Training {wildcards.classifier} on {wildcards.ratio} % of {wildcards.dataset}, synthetic: {wildcards.source}"
    shell:
        "vap stage {params.stage} 2>&1 | tee {log}"


rule table3:
    """The paper's Table 3."""
    input:
        MARKS / "table3",
        expand(
            "results/downstream/{dataset}/{classifier}-{ratio_source}.json",
            dataset=config["datasets"],
            classifier=DOWNSTREAM["classifiers"],
            ratio_source=scored_sources(),
        ),
    output:
        report("results/tables/table3.csv", caption="../report/table3.rst", category="Tables"),
        "results/tables/table3.md",
    log:
        "logs/table3.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
    message:
        "Writing Table 3"
    shell:
        "vap stage table3 2>&1 | tee {log}"
