#!/usr/bin/env bash
# Makes the raw numbers of digits.md: one line of JSON a run, in digits.jsonl; the time of each run in times.txt.
set -euo pipefail
export OMP_NUM_THREADS=1
run() {
    local name=$1
    shift
    /usr/bin/time -f "$name wall %e s, user %U s" -a -o times.txt halikit train "$@" --out "runs/$name" >"$name.log"
    halikit evaluate "runs/$name" --json >>digits.jsonl
}
for seed in 0 1 2 3 4 5 6 7 8 9; do run "l3-s$seed" --levels 3 --seed "$seed"; done
for seed in 0 1; do
    for levels in 1 2 4 5; do run "l$levels-s$seed" --levels "$levels" --seed "$seed"; done
    run "l3-nogauge-s$seed" --levels 3 --seed "$seed" --set gauge=none --set max_scale=none
    run "l3-nogrowth-s$seed" --levels 3 --seed "$seed" --set grow_every=none
done
run l5-s2 --levels 5 --seed 2
run l6-bf16-s0 --levels 6 --set compile=default --precision bf16
