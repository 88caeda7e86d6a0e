#!/usr/bin/env bash
# Makes the raw numbers of conditional.md, in conditional.jsonl: two lines of JSON a seed.
set -euo pipefail
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
    run="runs/conditional/$seed"
    halikit --quiet train --preset digits_conditional --seed "$seed" --out "$run" --json >>conditional.jsonl
    halikit evaluate classes "$run" --json >>conditional.jsonl
    halikit evaluate samples "$run"
done
