#!/usr/bin/env bash
# Makes the numbers of mnist.md. DIR holds the four official MNIST files.
set -euo pipefail
DIR=${1:?usage: mnist.sh DIR}
export OMP_NUM_THREADS=1
/usr/bin/time -f "wall %e s, user %U s" halikit train --preset mnist --data "mnist:$DIR" --out runs/mnist-l2
for classifier in network neighbours; do halikit evaluate labels runs/mnist-l2 --test --classifier "$classifier" --json; done >mnist.json
# Two and four levels, 12,000 steps, in mnist_levels.jsonl. bfloat16 wants a CPU that has it: leave it out elsewhere.
fast=(--data "mnist:$DIR" --steps 12000 --set compile=default --precision bf16)
four=(--levels 4 --set model.family=dense --set hidden=512 --set discriminator.width=512 --set "widths=[64,50,40,32]"
    --set learning_rate=1e-4 --set discriminator_learning_rate=8e-4)
for seed in 0 1 2; do
    halikit train --preset mnist "${fast[@]}" --seed "$seed" --out "runs/m2-s$seed"
    halikit train "${four[@]}" "${fast[@]}" --seed "$seed" --out "runs/m4-s$seed"
    for levels in 2 4; do
        halikit evaluate labels "runs/m$levels-s$seed" --json >>mnist_levels.jsonl
        halikit evaluate labels "runs/m$levels-s$seed" --test --json >>mnist_levels.jsonl
    done
done
