#!/usr/bin/env bash
# Trains the preset digits_conditional under three seeds on one thread, and measures whether samples have the class
# that was asked for. Prints one JSON line for each run, as in docs/results/conditional.jsonl.
# Usage: docs/results/conditional.sh [DIRECTORY] [SEED ...]
set -euo pipefail
out=${1:-runs/conditional}
shift || true
export OMP_NUM_THREADS=1
for seed in "${@:-0 1 2}"; do
    for one in $seed; do
        halikit --quiet train --preset digits_conditional --seed "$one" --out "$out/$one" --json
        halikit evaluate classes "$out/$one" --json
    done
done
