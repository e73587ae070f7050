"""`python -m benchmarks [NAME …]`: compare this code with a reference, side by side in one run.

Each module of this folder has `run() -> Result`. A row a benchmark is printed, and benchmarks/out/NAME.json
is written with the keys name, ours, reference, ratio (higher is better), unit, machine, toy.
VAP_BENCH_TOY=1 makes toy sizes of all, to see that they start; VAP_BENCH_OUT names another folder.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks.common import TOY, Result

HERE = Path(__file__).parent


def machine() -> str:
    """The processor and how many of it."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main(names: list[str]) -> int:
    known = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("__init__", "__main__", "common"))
    if unknown := [name for name in names if name not in known]:
        print(f"error: no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    print(f"{'name':<16}{'ours':>14}{'reference':>14}{'ratio':>9}  unit")
    for name in names or known:
        result: Result = importlib.import_module(f"benchmarks.{name}").run()
        print(f"{name:<16}{result.ours:>14.4g}{result.reference:>14.4g}{result.ratio:>9.2f}  {result.unit}")
        out = Path(os.environ.get("VAP_BENCH_OUT", HERE / "out")) / f"{name}.json"
        out.parent.mkdir(exist_ok=True)
        row = {
            "name": name,
            "ours": result.ours,
            "reference": result.reference,
            "ratio": result.ratio,
            "unit": result.unit,
            "machine": machine(),
            "toy": TOY,
            **result.details,
        }
        out.write_text(json.dumps(row, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
