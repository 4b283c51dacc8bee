"""Runs layers and planted faults in the executor, and appends each result to a file.

    PYTHONPATH=.:tests/support:tests/ptxrun python -m ptxrun [layers] [faults] [plans] [--only TEXT] [--seeds N]

layers  each under some interleavings, against torch.nn.GRU in float64
faults  planted in the kernels, where each has to be caught
plans   every row's kernels compiled, and refused where a loop overwrites operands of an unfinished product

Results already in the file for the same sources are not computed again. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before anything imports triton

from . import build, results, work


def main() -> None:
    """Runs the requested items that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="layers, faults, plans; all of them if none is named")
    parser.add_argument("--only", default="", help="part of the name of what is run")
    parser.add_argument("--seeds", type=int, default=3, help="interleavings of each layer")
    parser.add_argument("--places", type=int, default=4, help="where a fault is planted in a kernel, at most")
    parser.add_argument("--few", action="store_true", help="only what the normal suite runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=build.FOLDER / "results.jsonl")
    options = parser.parse_args()
    options.what = options.what or ["layers", "faults", "plans"]
    digest = results.digest()
    lines = results.read(options.out, digest)
    wanted = {str(item): item for item in work.items(options)}
    missing = [item for name, item in wanted.items() if name not in lines]
    build.library()
    with options.out.open("a") as file:
        for result in work.all_done(missing, options.jobs):
            line = {**result, "sources": digest}
            lines[line["name"]] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            print("WRONG" if line["wrong"] else "ok   ", line["name"], f"{line['seconds']} s", flush=True)
    found = [lines[name] for name in wanted]
    print(results.summary(found))
    sys.exit(any(line["wrong"] for line in found))


if __name__ == "__main__":
    main()
