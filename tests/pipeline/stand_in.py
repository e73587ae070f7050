"""A stand-in for the command `vap`: cheap, countable, and faithful to dvc.yaml.

It finds in dvc.yaml the stage whose command it was called with, reads the deps declared there, and
writes the declared outs as a function of their content. Each call appends the stage's name to the file
that $CALLS names. $FAIL names a stage that fails; $HANG one that hangs half-way, with one out written.
`vap stage`, through which Snakemake calls DVC, and `vap plan` are the real ones.
"""

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import yaml


def main() -> None:
    if sys.argv[1] in ("stage", "plan"):
        program = Path(sys.executable).with_name("vap")
        os.execv(program, [str(program), *sys.argv[1:]])
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    name, stage, item = find(" ".join(["vap", *sys.argv[1:]]), params)
    with open(os.environ["CALLS"], "a", encoding="utf-8") as calls:
        calls.write(f"{name}\n")
    if name == os.environ.get("FAIL"):
        sys.exit(f"error: {name} is broken")
    digest = hashlib.sha256(stage["cmd"].encode())
    for dep in stage["deps"]:
        digest.update(content(Path(fill(dep, item))))
    plots = [path for entry in stage.get("plots", []) for path in entry]  # each is {path: how to draw it}
    for number, out in enumerate(stage.get("outs", []) + stage.get("metrics", []) + plots):
        path = Path(fill(out, item))
        path = path if path.suffix else path / "part.json"  # a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"made from": digest.hexdigest(), "out": number}))
        if name == os.environ.get("HANG"):
            Path(os.environ["CALLS"]).with_name("hanging").write_text(str(os.getpid()))
            time.sleep(60)


def find(command: str, params: dict) -> tuple[str, dict, dict]:
    """The stage of dvc.yaml with this command: its name, its entry and its matrix item."""
    for name, stage in yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        matrix = stage.get("matrix", {})
        lists = [[str(name) for name in value(params, entry.strip("${}"))] for entry in matrix.values()]
        for choice in itertools.product(*lists):
            item = dict(zip(matrix, choice, strict=True))
            if fill(stage["cmd"], item) == command:
                return (f"{name}@{'-'.join(choice)}" if item else name), stage, item
    sys.exit(f"error: no stage of dvc.yaml has the command {command!r}")


def fill(text: str, item: dict) -> str:
    for key, name in item.items():
        text = text.replace(f"${{item.{key}}}", name)
    return text


def value(params: dict, key: str) -> object:
    for part in key.split("."):
        params = params[part]
    return params


def content(path: Path) -> bytes:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return b"".join(p.read_bytes() for p in files if "__pycache__" not in p.parts)


if __name__ == "__main__":
    main()
