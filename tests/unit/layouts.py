"""Official layouts in miniature, of drawn images, loose or in archives."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vap.datasets import chestxray14, isic2018, isic2019
from vap.params import Params, parse
from vap.profiles import profile_text

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = profile_text(PROJECT / "config/smoke.yaml")  # as params.yaml
SHARED = Path(os.environ.get("VAP_TEST_DATA", PROJECT.parent / "shared" / "data"))
Files = dict[str, bytes]
NOTHING: dict[str, Any] = {}
OPTIONS: dict[str, dict[str, Any]] = {
    "isic2018": {},
    "isic2019": {"split": "lesion", "exclude_isic2018": False},
    "chestxray14": {"table": "v2020", "split": "official", "include_no_finding": False},
    "colonoscopy": {
        "parts": ["polypsset"],
        "classes": {"adenomatous": "adenoma", "hyperplastic": "hyperplastic", "negative": None},
    },
    "folder": {},
}


def settings(adapter: str, options: Mapping[str, Any] = NOTHING, **prepare: Any) -> Params:
    """params.yaml with the one dataset `own`."""
    data = yaml.safe_load(SMOKE)
    data["datasets"] = ["own"]
    data["dataset"] = {"own": {"adapter": adapter, "modality": "dermoscopy", **OPTIONS[adapter], **options}}
    data["prepare"] |= {"image_size": 16, "max_train": None, "max_test": None, **prepare}
    return parse(data)


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image file of coarse noise, 24 x 18."""
    noise = np.random.default_rng(seed).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    image: Image.Image = Image.fromarray(noise)
    if mode == "16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def lay_out(root: Path, files: Files, archives: Mapping[str, str] = NOTHING) -> Path:
    """Write `files`; those below a folder that `archives` names go into that archive instead.

    Args:
        archives: archive (.zip, .tar, .tar.gz) to the first part of the paths that it holds.
    """
    root.mkdir(parents=True, exist_ok=True)
    rest = dict(files)
    for name, prefix in archives.items():
        inside = {path: rest.pop(path) for path in sorted(files) if path.startswith(prefix)}
        assert inside
        pack(root / name, inside)
    for path, data in rest.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def pack(archive: Path, files: Files) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path, data in files.items():
                zipped.writestr(path, data)
        return
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def one_hot(classes: list[str], labels: Mapping[str, str]) -> bytes:
    rows = [",".join([i, *("1.0" if c == label else "0.0" for c in classes)]) for i, label in labels.items()]
    return "\n".join([",".join(["image", *classes]), *rows, ""]).encode()


def isic2018_files(train: int = 14, test: int = 7, val: int = 0) -> Files:
    """Labels in turn, two training images a lesion."""
    files: Files = {}
    number = 0
    for name, count in (("Training", train), ("Validation", val), ("Test", test)):
        if not count:
            continue
        labels = {}
        for i in range(count):
            number += 1
            labels[f"ISIC_{number:07d}"] = isic2018.CLASSES[i % 7]
            files[f"ISIC2018_Task3_{name}_Input/ISIC_{number:07d}.jpg"] = picture(number)
        table = f"ISIC2018_Task3_{name}_GroundTruth"
        files[f"{table}/{table}.csv"] = one_hot(isic2018.CLASSES, labels)
    rows = [f"ISIC_{i:07d},HAM_{(i - 1) % 7:07d},histopathology" for i in range(1, train + 1)]
    files[isic2018.GROUPINGS] = "\n".join(["image,lesion_id,diagnosis_confirm_type", *rows, ""]).encode()
    return files


ISIC2018_ZIPS = {
    f"ISIC2018_Task3_{name}_{kind}.zip": f"ISIC2018_Task3_{name}_{kind}/"
    for name in ("Training", "Test")
    for kind in ("Input", "GroundTruth")
}


def isic2019_files(lesions: int = 40) -> Files:
    """Three images a lesion, one of them of ISIC 2018 and one `_downsampled`; two without a lesion."""
    files: Files = {}
    labels: dict[str, str] = {}
    rows = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for lesion in range(lesions):
        names = [f"ISIC_{lesion:07d}", f"ISIC_{24306 + lesion:07d}", f"ISIC_{60000 + lesion:07d}_downsampled"]
        for name in names:
            labels[name] = isic2019.CLASSES[lesion % 8]
            rows.append(f"{name},55,anterior torso,{'' if lesion < 2 else f'BCN_{lesion:07d}'},female")
            files[f"ISIC_2019_Training_Input/{name}.jpg"] = picture(len(labels))
    files[isic2019.TRUTH] = one_hot([*isic2019.CLASSES, "UNK"], labels)
    files[isic2019.METADATA] = "\n".join([*rows, ""]).encode()
    return files


def chest_files(patients: int = 42) -> Files:
    """Two images a patient of one finding each, one with two findings and one without; four modes of PNG."""
    files: Files = {}
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,OriginalImage[Width,Height],"]
    lists: dict[str, list[str]] = {name: [] for name in chestxray14.LISTS.values()}
    modes = ("L", "RGBA", "P", "16")
    for patient in range(1, patients + 1):
        label = chestxray14.CLASSES[patient % 14]
        findings = (label, label, f"{label}|{chestxray14.CLASSES[(patient + 1) % 14]}", "No Finding")
        for follow_up, finding in enumerate(findings):
            name = f"{patient:08d}_{follow_up:03d}.png"
            rows.append(f"{name},{finding},{follow_up},{patient},58,2682,2749,")
            folder = "images_001" if patient <= patients // 2 else "images_002"
            files[f"{folder}/images/{name}"] = picture(len(rows), "PNG", modes[len(rows) % 4])
            lists["test_list.txt" if patient > 28 else "train_val_list.txt"].append(name)
    files["Data_Entry_2017_v2020.csv"] = "\n".join([*rows, ""]).encode()
    for name, names in lists.items():
        files[name] = "\n".join(names).encode()  # no final newline, as the official ones
    return files


def chest_archived(root: Path, files: Files) -> Path:
    """The images in images_001.tar.gz and images_002.tar.gz, as images/*.png."""
    rest = {path: data for path, data in files.items() if not path.startswith("images_")}
    for name in ("images_001", "images_002"):
        inside = {p.removeprefix(f"{name}/"): d for p, d in files.items() if p.startswith(name)}
        pack(root / f"{name}.tar.gz", inside)
    return lay_out(root, rest)


def voc(*labels: str) -> bytes:
    objects = "".join(
        f"<object><name>{x}</name><bndbox><xmin>1</xmin><ymin>1</ymin></bndbox></object>" for x in labels
    )
    return f"<annotation><folder>15</folder><filename>1.png</filename>{objects}</annotation>".encode()


def polypsset_files(train: int = 20, sequences: int = 6, frames: int = 4) -> Files:
    """A flat train2019; sequences of one class each in val2019 and test2019, an empty frame in each."""
    files: Files = {}
    names = ("adenomatous", "hyperplastic")
    for i in range(train):
        files[f"PolypsSet/train2019/Image/{i}.jpg"] = picture(i)
        files[f"PolypsSet/train2019/Annotation/{i}.xml"] = voc(names[i % 2])
    for part in ("val2019", "test2019"):
        for sequence in range(sequences):
            for i in range(frames):
                base = f"{sequence}/{i}"
                files[f"PolypsSet/{part}/Image/{base}.jpg"] = picture(len(files))
                label = () if i == 0 else (names[sequence % 2],)
                files[f"PolypsSet/{part}/Annotation/{base}.xml"] = voc(*label)
            files[f"PolypsSet/{part}/Annotation/{sequence}/99.xml"] = voc("adenomatous")  # of no image
    return files


def sun_files(cases: int = 8, frames: int = 3) -> Files:
    files: Files = {}
    rows = ["case,pathology"]
    for case in range(1, cases + 1):
        part = 1 + case % 2
        for i in range(frames):
            files[f"sundatabase_positive_part{part}/case{case}/a{i}.jpg"] = picture(len(files))
        rows.append(f"case{case},{('low-grade adenoma', 'hyperplastic polyp')[case % 2]}")
    for case in (1, 2):
        files[f"sundatabase_negative_part1/case{case}/n.jpg"] = picture(len(files))
    files["pathology.csv"] = "\n".join(rows).encode()
    return files


def mesejo_files(lesions: int = 4) -> Files:
    files: Files = {}
    for kind in ("Adenoma", "Hyperplasic", "Serrated"):
        for lesion in range(1, lesions + 1):
            for light in ("WL", "NBI"):
                for i in range(2):
                    path = f"{kind}/{kind.lower()}_{lesion:02d}/{light}/{i:04d}.png"
                    files[path] = picture(len(files), "PNG")
    return files


def private_files(videos: int = 4) -> Files:
    return {
        f"{name}/video{video}/{i}.png": picture(100 * video + i, "PNG")
        for name in ("adenoma", "hyperplastic")
        for video in range(videos)
        for i in range(3)
    }


def within(folder: str, files: Files) -> Files:
    return {f"{folder}/{path}": data for path, data in files.items()}
