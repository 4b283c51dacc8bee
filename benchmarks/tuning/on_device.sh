#!/usr/bin/env bash
# A GPU day, uninstalled and without network, each call in under 9 minutes:
#   bash benchmarks/tuning/on_device.sh OUT            test, tune, time; with DATA=PATH (IMDB as parquet) an epoch too;
#                                                      KINDS="half tf32 ieee" tunes these
#   bash benchmarks/tuning/on_device.sh OUT checks     sanitizers, neighbours, two processes, graphs
#   bash benchmarks/tuning/on_device.sh OUT full I/N   the I-th of N parts of the full grid, cut off after 500 s
#   bash benchmarks/tuning/on_device.sh OUT dry-run    tries the script itself without a GPU, on the smallest sizes
# Each part has its own time limit and log under OUT; what one part leaves is kept when another fails. Most of the time
# goes into compiling kernels: other processors fill Triton's cache while the tests run.
set -uo pipefail
cd "$(dirname "$0")/../.."
usage="usage: bash benchmarks/tuning/on_device.sh OUT [checks | full I/N | dry-run]"
OUT=${1:?$usage}
MODE=${2:-quick}
PYTHON=${PYTHON:-python3}
KINDS=${KINDS:-tf32 ieee}  # on an H200 the plans of 16 bits were timed
STRESS=tests/kernels/triton/stress.py
SPEED=("$PYTHON" -m benchmarks.measuring.run --device cuda --suite quick)
export PYTHONPATH=.
case $MODE in
    quick | checks | dry-run) ;;
    full) PART=${3:?$usage} ;;
    *) echo "$usage; got '$MODE'" >&2 && exit 2 ;;
esac
if [[ $MODE != dry-run ]]; then
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

fill_cache() {
    local i scratch
    scratch=$(mktemp -d)
    for i in {1..12}; do
        timeout 150 "$PYTHON" -m benchmarks.tuning.tune --compile "$i/12" --kinds $KINDS --seconds 125 &
    done
    for i in {1..3}; do
        timeout 150 "${SPEED[@]}" --providers grucore-triton --rounds 1 --seconds 0.05 --part "$i/3" --out "$scratch" &
    done
    wait
    rm -r "$scratch"
}

part environment 30 "$PYTHON" -m benchmarks.measuring.environment "$OUT/environment.json"
case $MODE in
    quick)
        fill_cache >"$OUT/cache.log" 2>&1 &
        # what other plugins and releases warn of must not fail a test
        part tests 150 "$PYTHON" -m pytest -q -m gpu -W default -p no:benchmark -n 3 tests/kernels
        wait
        part selftest 30 "$PYTHON" -m grucore.selftest
        part ceilings 25 "$PYTHON" -m benchmarks.measuring.ceilings --device cuda --out "$OUT/speed"
        part tune 130 "$PYTHON" -m benchmarks.tuning.tune --kinds $KINDS --seconds 115 --out "$OUT/tune"
        part speed 130 "${SPEED[@]}" --out "$OUT/speed"
        if [[ -n ${DATA:-} ]]; then
            part epoch 70 "$PYTHON" -m benchmarks.measuring.imdb_epoch --device cuda --preset book --data "$DATA" \
                --epochs 1 --out "$OUT/speed"
        fi
        ;;
    checks)
        for tool in memcheck racecheck initcheck synccheck; do
            part "$tool" 70 compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" "$STRESS" layers
        done
        part exchange 70 "$PYTHON" "$STRESS" exchange
        part processes 60 "$PYTHON" "$STRESS" processes --launches 4000
        part graph 40 "$PYTHON" "$STRESS" graph
        ;;
    full)
        part "speed-${PART/\//-of-}" 500 "$PYTHON" -m benchmarks.measuring.run --device cuda --suite full \
            --part "$PART" --out "$OUT/speed"
        ;;
    dry-run)
        export TRITON_INTERPRET=1
        part tests 60 "$PYTHON" -m pytest -q tests/kernels/triton/test_step.py -k empty
        part checks 60 "$PYTHON" "$STRESS" layers --device cpu --launches 1
        part tune 60 "$PYTHON" -m benchmarks.tuning.tune --dry-run --out "$OUT/tune"
        part speed 60 "$PYTHON" -m benchmarks.measuring.run --device cpu --suite smoke --rounds 2 \
            --providers grucore-eager torch --out "$OUT/speed"
        part report 60 "$PYTHON" -m benchmarks.publishing.report "$OUT/speed" --output "$OUT/report/RESULTS.md"
        ;;
esac
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" && exit 1; }
