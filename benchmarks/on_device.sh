#!/usr/bin/env bash
# A whole GPU day in under 9 minutes, uninstalled and without network:  bash benchmarks/on_device.sh OUT [--dry-run]
# Each part has its own time limit and log under OUT; what one part leaves is kept when another fails. --dry-run tries
# the script itself without a GPU, on the smallest sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: bash benchmarks/on_device.sh OUT [--dry-run]}
DRY=${2:-}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=.
if [[ $DRY != --dry-run ]]; then
    "$PYTHON" -c "import sys, torch; torch.cuda.is_available() or sys.exit('no GPU that PyTorch can use')" || exit 1
fi
mkdir -p "$OUT"
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 begin=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout --kill-after=10 "$seconds" "$@" >"$OUT/$name.log" 2>&1
    local status=$?
    tail -n 12 "$OUT/$name.log"
    echo "== $name: exit $status after $((SECONDS - begin)) s"
    ((status == 0)) || failed+=("$name")
}

part environment 60 "$PYTHON" -m benchmarks.environment "$OUT/environment.json"
if [[ $DRY == --dry-run ]]; then
    export TRITON_INTERPRET=1
    part tests 60 "$PYTHON" -m pytest -q tests/test_step.py -k empty
    part tune 60 "$PYTHON" -m benchmarks.tune --dry-run --out "$OUT/tune"
    part speed-smoke 60 "$PYTHON" -m benchmarks.run --device cpu --suite smoke --rounds 2 --out "$OUT/speed"
else
    part tests 150 "$PYTHON" -m pytest -q -m gpu tests/test_fused.py tests/test_step.py tests/test_gpu.py
    part selftest 60 "$PYTHON" -m grucore.selftest
    part tune 170 "$PYTHON" -m benchmarks.tune --seconds 150 --out "$OUT/tune"
    for dtype in bfloat16 float16 float32; do
        part "speed-$dtype" 40 "$PYTHON" -m benchmarks.run --device cuda --dtype $dtype --suite quick --out "$OUT/speed"
    done
fi
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" && exit 1; }
