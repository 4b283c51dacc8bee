"""How right the shipped IMDB model is with its GRU quantised, on real test reviews; writes a JSON.

    python -m benchmarks.measuring.quantised_imdb --data FOLDER --out FOLDER      two minutes for 2,000 reviews

Reviews are evenly spaced among the test reviews, which are ordered by label.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.measuring.environment import environment, on_cpu

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "imdb"


def main() -> None:
    """Judges the same reviews with each kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with the real reviews, as of examples/imdb/train.py")
    parser.add_argument("--reviews", type=int, default=2000, help="how many, evenly spaced among the test reviews")
    parser.add_argument("--out", type=Path, required=True, help="a folder; quantised/imdb.json is written there")
    given = parser.parse_args()
    target = given.out / "quantised" / "imdb.json"
    if target.exists():
        sys.exit(f"error: {target} exists: results are never overwritten; give another --out or move it away")
    under = environment("cpu") | on_cpu("cpu")
    sys.path.insert(0, str(EXAMPLE))
    from accelerate import Accelerator
    from data import encode, load
    from evaluation import margins_of
    from predict import Predictor

    reviews = load(given.data, "test")
    rows = [i * len(reviews.texts) // given.reviews for i in range(given.reviews)]
    predictor, found, before = Predictor(), {}, None
    encoded = encode(predictor.tokenizer, reviews.part(rows))
    judge, positive = predictor.judge, encoded.targets > 0.5
    layers = [member.gru for member in judge.members]
    for weights in ("float32", "int8", "bf16"):
        for member, layer in zip(judge.members, layers, strict=True):
            member.gru = layer if weights == "float32" else layer.quantize(weights)
        log_odds = judge.combine(margins_of(judge.margins, encoded, 64, Accelerator(cpu=True)))
        before = log_odds if before is None else before
        found[weights] = {
            "accuracy": ((log_odds > 0) == positive).double().mean().item(),
            "labels_changed": int(((log_odds > 0) != (before > 0)).sum()),
            "largest_change_of_probability": (log_odds.sigmoid() - before.sigmoid()).abs().max().item(),
        }
        print(weights, found[weights], flush=True)
    command = shlex.join(["python", "-m", "benchmarks.measuring.quantised_imdb", *sys.argv[1:]])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"reviews": given.reviews, **found, "command": command, **under}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    with torch.no_grad():
        main()
