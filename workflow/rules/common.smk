# What the rules share: params.yaml checked, DVC's stale marks, and how a stage is run.
from snakemake.exceptions import WorkflowError

from vap import pipeline
from vap.errors import VapError
from vap.pipeline import MARKS, RUN, code

try:
    PARAMS = pipeline.set_up(config, main_process=workflow.is_main_process)
except VapError as error:
    raise WorkflowError(str(error)) from None


def params_of(*keys):
    """A rule's params: the keys of params.yaml that the stage depends on, with their values."""
    return lambda w: pipeline.settings(config, *(key.format(**w) for key in keys))


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    method="|".join(config["methods"]),
