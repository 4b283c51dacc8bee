#!/usr/bin/env bash
# The suite on other releases of torch and Triton, one environment at a time:
#
#     bash tests/versions.sh [FOLDER] [TORCH/TRITON ...]
#
# FOLDER (runs/versions unless given) keeps one log per pair, and summary.txt. An environment takes 7 GB, since PyPI's
# builds of torch bring CUDA, and is removed after its run; KEEP=1 keeps it, and uses one that is there. Pairs unless
# given: the oldest that pyproject.toml allows, that of the GPU image, that of constraints.txt, and the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/versions}
shift || true
pairs=("$@")
[ ${#pairs[@]} -gt 0 ] || pairs=(2.8.0/3.4.0 2.11.0/3.6.0 2.13.0/3.7.1 2.15.0/3.9.0)
mkdir -p "$folder"

for pair in "${pairs[@]}"; do
    torch=${pair%/*} triton=${pair#*/}
    environment=$folder/torch-$torch log=$folder/torch-$torch-triton-$triton.log
    oldest=$(printf '%s\n' 3.7 "$triton" | sort -V | head -1)
    {
        echo "torch==$torch"
        echo "triton==$triton"
        [ "$oldest" = 3.7 ] || echo "numpy<2.4" # older Tritons interpret with older NumPys only
        grep -vE '^(torch|triton|numpy|torchrl|flashrnn)==' constraints.txt
    } > "$folder/constraints.txt"
    test -x "$environment/bin/python" || "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --no-cache-dir --no-compile \
        --constraint "$folder/constraints.txt" --editable '.[test]' 2>&1 | tee "$log"
    OMP_NUM_THREADS=1 PYTHONPATH=. "$environment/bin/python" -m pytest -n "$(nproc)" --dist worksteal 2>&1 |
        tee -a "$log" || true
    echo "torch $torch, Triton $triton: $(tail -1 "$log")" | tee -a "$folder/summary.txt"
    [ "${KEEP:-}" ] || rm -rf "$environment"
done
