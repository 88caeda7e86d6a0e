#!/usr/bin/env bash
# Makes the raw numbers of semi_supervised.md. DIR holds the four official MNIST files; seeds to run follow it.
set -euo pipefail
DIR=${1:?usage: semi_supervised.sh DIR [SEED…]}
shift
export OMP_NUM_THREADS=1
data="mnist:$DIR"
run() {
    local name=$1
    shift
    /usr/bin/time -f "$name wall %e s, user %U s" -a -o times.txt halikit train --data "$data" --out "runs/$name" "$@" >"$name.log"
}
for seed in "${@:-0}"; do
    run "alone-s$seed" --preset mnist_supervised --seed "$seed"
    run "conv-alone-s$seed" --preset mnist_supervised --steps 1000 --set model.family=mixed --set evaluate_every=500 --seed "$seed"
    run "spread-s$seed" --preset mnist_supervised --set labels.propagation_neighbours=5 --seed "$seed"
    run "best-s$seed" --preset mnist_semi_best --seed "$seed"
    run "no-graph-s$seed" --preset mnist_semi_best --steps 6000 --set propagate_every=none --seed "$seed"
    run "strict-s$seed" --preset mnist_semi --steps 5000 --seed "$seed"
done
for name in alone conv-alone spread no-graph best strict; do halikit evaluate errors runs/"$name"-s* --json; done >semi_supervised.jsonl
halikit evaluate errors runs/best-s* --views 16 --json >>semi_supervised.jsonl
