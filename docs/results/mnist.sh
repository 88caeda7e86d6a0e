#!/usr/bin/env bash
# Makes the numbers of mnist.md. DIR holds the four official MNIST files.
set -euo pipefail
DIR=${1:?usage: mnist.sh DIR}
export OMP_NUM_THREADS=1
/usr/bin/time -f "wall %e s, user %U s" halikit train --preset mnist --data "mnist:$DIR" --out runs/mnist-l2
for classifier in network neighbours; do halikit evaluate runs/mnist-l2 --test --classifier "$classifier" --json; done >mnist.json
# One to four levels, 12,000 steps, in mnist_levels.jsonl. bfloat16 wants a CPU that has it: leave it out elsewhere.
fast=(--data "mnist:$DIR" --steps 12000 --set compile=default --precision bf16)
wide=(--set model.family=dense --set hidden=512 --set discriminator.width=512 --set learning_rate=3e-4 --set discriminator_learning_rate=1.2e-3)
for seed in 0 1; do
    halikit train --preset mnist "${fast[@]}" --seed "$seed" --out "runs/m2-s$seed"
    for widths in 64 64,45,32 64,50,40,32; do
        commas=${widths//[^,]/}
        levels=$((${#commas} + 1))
        halikit train --levels "$levels" "${fast[@]}" "${wide[@]}" --set "widths=[$widths]" --seed "$seed" --out "runs/m$levels-s$seed"
    done
    for levels in 1 2 3 4; do halikit evaluate "runs/m$levels-s$seed" --json >>mnist_levels.jsonl; done
done
