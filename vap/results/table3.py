"""table3: the scores of all classifiers as the paper's Table 3, with its values beside ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vap.common.errors import VapError
from vap.common.markup import markdown
from vap.downstream.places import REAL_ALONE, SHARE, label_of, scores_path, source_of
from vap.params import DownstreamParams, Params
from vap.results.paper3 import printed
from vap.results.table import NO_VALUE as NO_PAPER
from vap.results.table import Row, lines_of, number, write
from vap.runs import method_of, share_run

TABLE = Path("results/tables/table3.csv")
NO_F1 = ("chest_xray",)  # modalities without F1 in the paper's table
NO_VALUE = "/"  # as the paper prints it
SCORES = ("mauc", "mauc_low", "mauc_high", "f1", "f1_low", "f1_high", "balanced_accuracy")
COLUMNS = (
    "dataset",
    "classifier",
    "ratio",
    "images",
    "n_real",
    "n_synthetic",
    "n_test",
    "seeds",
    *SCORES,
    "absent",
    "paper_mauc",
    "paper_f1",
)


def run(params: Params) -> Path:
    """Write results/tables/table3.csv and .md, a row per dataset, classifier, ratio and source.

    The paper's values stand beside the rows that are the paper's. F1 is "/" for chest X-rays, as there;
    `absent` names the classes without a test image, which no mean counts. With downstream.generator_ratios
    every source has a second row at these ratios, of a generator that has seen the classifier's real images
    alone; at 100 % that is the same generator, and the row repeats its scores.

    Raises:
        VapError: a file of scores is absent or of another run, or a score is not a number.
    """
    settings = params.downstream
    rows = [
        _row(dataset, classifier, ratio, label)
        for dataset in params.datasets
        for classifier in settings.classifiers
        for ratio in settings.ratios
        for label in _labels(settings, int(ratio))
    ]
    columns = list(COLUMNS)
    if settings.generator_ratios:
        columns.insert(columns.index("images") + 1, "generator_data")
    cells = [{name: row[name] for name in columns} for row in rows]
    write(TABLE, columns, cells, _markdown(rows, settings.ratios))
    return TABLE


def _labels(settings: DownstreamParams, percent: int) -> list[str]:
    """What the rows of a ratio are called."""
    sources = [REAL_ALONE, *settings.sources]
    if str(percent) in settings.generator_ratios or (percent == 100 and settings.generator_ratios):
        sources += [share_run(source, percent) for source in settings.sources]
    return [label_of(source) for source in sources]


def _row(dataset: str, classifier: str, ratio: str, label: str) -> Row:
    source = source_of(label, ratio)
    path = scores_path(dataset, classifier, ratio, source)
    again = "run the classify stage again"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        own = (scores["dataset"], scores["classifier"], str(scores["ratio"]), scores["source"])
        row: Row = {name: scores[name] for name in ("n_real", "n_synthetic", "n_test")}
        row["generator_data"] = scores["generator_data"] or NO_PAPER
        row |= {name: float(scores[name]) for name in SCORES}
        row |= {"seeds": scores["seed"], "absent": " ".join(scores["absent"]) or NO_PAPER}
        no_f1 = scores["modality"] in NO_F1
    except FileNotFoundError:
        raise VapError(path, "no such file", "a classifier's scores", "run the classify stage") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VapError(path, f"no scores ({error!r})", "the classify stage's JSON", again) from None
    if own != (dataset, classifier, ratio, source):
        raise VapError(path, f"scores of {' '.join(own)}", "its own", again)
    if bad := [name for name in SCORES if not 0 <= row[name] <= 1]:  # NaN is in no interval
        raise VapError(path, f"{bad[0]} {row[bad[0]]}", "a number from 0 to 1", again)
    row |= {name: f"{row[name]:.3f}" for name in SCORES}
    if no_f1:
        row |= dict.fromkeys(("f1", "f1_low", "f1_high"), NO_VALUE)
    paper = printed(dataset, classifier, int(ratio), source)
    if label.endswith(SHARE):
        row["generator_data"], paper = "ratio", (None, None)  # the paper's generators have seen all images
    paper_mauc, paper_f1 = map(number, paper)
    return row | {
        "dataset": dataset,
        "classifier": classifier,
        "ratio": ratio,
        "source": source,
        "images": label,
        "paper_mauc": paper_mauc,
        "paper_f1": NO_VALUE if no_f1 and paper[0] is not None else paper_f1,
    }


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────────


def _markdown(rows: Sequence[Row], ratios: Sequence[str]) -> str:
    lines = ["# Table 3: downstream classification", ""]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        lines += _section([row for row in rows if row["dataset"] == dataset], ratios)
    lines += [
        "mAUC: mean one-versus-rest AUC; F1: mean over the classes; in brackets 95 % bootstrap intervals "
        "over the test images, which say nothing of another seed of the training. A ratio is the share of "
        "the real training images of each class, at least one image; smaller subsets are parts of larger.",
        "",
    ]
    if any(row["generator_data"] == "full" for row in rows):
        lines += [
            "The generators were trained on all real training images (`generator_data: full`), so a row with "
            "synthetic images owes them more real images than its ratio says.",
            "",
        ]
    if any(row["generator_data"] == "ratio" for row in rows):
        lines += [
            "Not so where the images are `trained on the share` (`generator_data: ratio`): for each ratio a "
            "generator was trained on the classifier's own real images, and drew with their descriptions. At "
            "100 % that is the generator of the other row. The autoencoder of the methods on latents, where "
            "it is trained here, has seen all real training images.",
            "",
        ]
    return "\n".join(lines)


def _section(rows: Sequence[Row], ratios: Sequence[str]) -> list[str]:
    """One dataset: a line a classifier and source, a column a score and ratio."""
    with_paper = any(row["paper_mauc"] != NO_PAPER for row in rows)
    percents = [f"{ratio} %" for ratio in ratios]
    head = ["Classifier", "Images", *(f"mAUC {p}" for p in percents), *(f"F1 {p}" for p in percents)]
    head += [f"paper: mAUC {' / '.join(percents)}", f"F1 {' / '.join(percents)}"] if with_paper else []
    body = []
    for classifier, images in dict.fromkeys((row["classifier"], row["images"]) for row in rows):
        chosen = [row for row in rows if (row["classifier"], row["images"]) == (classifier, images)]
        cells = [classifier, images]
        cells += [_with_interval(row, "mauc") for row in chosen]
        cells += [_with_interval(row, "f1") for row in chosen]
        if with_paper:
            cells += [" / ".join(row[name] for row in chosen) for name in ("paper_mauc", "paper_f1")]
        body.append(cells)
    lines = [f"## {rows[0]['dataset']}", "", *lines_of(head, body)]
    counts = {row["ratio"]: row["n_real"] for row in rows}
    told = ", ".join(f"{ratio} % is {counts[ratio]}" for ratio in ratios)
    synthetic = {method_of(row["source"]): row["n_synthetic"] for row in rows if row["source"] != REAL_ALONE}
    added = "".join(f"; {name} adds {n}" for name, n in synthetic.items())
    lines += ["", f"Real images: {told}{added}; tested on {rows[0]['n_test']}; seed {rows[0]['seeds']}."]
    if rows[0]["absent"] != NO_PAPER:
        lines[-1] += f" Without a test image, and in no mean: {markdown(rows[0]['absent'])}."
    return [*lines, ""]


def _with_interval(row: Row, name: str) -> str:
    value: str = row[name]
    return value if value == NO_VALUE else f"{value} [{row[f'{name}_low']}, {row[f'{name}_high']}]"
