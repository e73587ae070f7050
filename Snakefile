# VAP-Diffusion: from raw images to the tables of the paper. The rules are in workflow/rules/, a file a phase.
#   snakemake --cores all results/tables/table1.csv
from snakemake.utils import min_version

min_version("9.27")


configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/downstream.smk"


rule all:
    default_target: True
    input:
        "results/tables/table1.csv",
        expand("results/figures/{dataset}.png", dataset=config["datasets"]),
