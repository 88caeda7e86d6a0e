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
dense=(--set model.family=dense --set encoder_noise=0.3)
for seed in "${@:-0}"; do
    run "conv-alone-s$seed" --preset mnist_supervised --seed "$seed"
    run "strict-s$seed" --preset mnist_semi --seed "$seed"
    run "old-alone-s$seed" --preset mnist_supervised --steps 2000 "${dense[@]}" --seed "$seed"
    run "old-conv-alone-s$seed" --preset mnist_supervised --set encoder_noise=0.3 --seed "$seed"
    run "spread-s$seed" --preset mnist_supervised --steps 2000 "${dense[@]}" --set labels.propagation_neighbours=5 --seed "$seed"
    run "best-s$seed" --preset mnist_semi_best --seed "$seed"
    run "no-graph-s$seed" --preset mnist_semi_best --steps 6000 --set propagate_every=none --seed "$seed"
done
for name in conv-alone strict old-alone old-conv-alone spread no-graph best; do
    halikit evaluate errors runs/"$name"-s* --json
done >semi_supervised.jsonl
halikit evaluate errors runs/best-s* --views 16 --json >>semi_supervised.jsonl
