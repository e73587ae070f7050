"""`vap export-images`: samples as PNGs in a folder a class, with metadata.csv (the Hub's imagefolder)."""

from __future__ import annotations

from pathlib import Path

from vap.common.artifacts import atomic
from vap.common.errors import VapError
from vap.common.markup import write_csv
from vap.common.places import samples_path
from vap.datasets.samples import Samples
from vap.publishing.generate import file_part, require_new

COLUMNS = ("file_name", "label", "text", "index")


def export_images(dataset: str, method: str, condition: str, target: Path) -> int:
    """Write the samples of a run into a new folder.

    `target`/CLASS/INDEX.png are the PNGs as they were sampled; metadata.csv has a row for each, whose
    `file_name` is relative to it, as `datasets.load_dataset("imagefolder", data_dir=…)` reads it.

    Returns:
        the number of images.

    Raises:
        VapError: there are no samples, `target` holds something, or two classes have one name as a folder.
    """
    require_new(target, "name another")
    found = Samples(samples_path(dataset, method, condition))
    folders = {label: file_part(label) for label in found.classes}
    if len({folder.casefold() for folder in folders.values()}) < len(folders):
        told = ", ".join(f"{label!r}: {folder}" for label, folder in folders.items())
        raise VapError(
            found.file.path, f"classes of one folder's name ({told})", "names that differ", "rename"
        )
    indices = found.file.column("index")
    rows = []
    with atomic(target) as part:
        for i, number in enumerate(found.targets):
            label = found.classes[number]
            file = Path(folders[label]) / f"{indices[i]:06d}.png"
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            (part / file).write_bytes(found.png(i))
            text = found.texts[i] or ""
            rows.append({"file_name": file.as_posix(), "label": label, "text": text, "index": indices[i]})
        with (part / "metadata.csv").open("w", encoding="utf-8", newline="") as file_:
            write_csv(file_, COLUMNS, rows)
    return len(rows)
