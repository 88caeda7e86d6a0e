#!/usr/bin/env bash
# Makes the numbers of mnist.md. DIR holds the four official MNIST files.
set -euo pipefail
DIR=${1:?usage: mnist.sh DIR}
export OMP_NUM_THREADS=1
/usr/bin/time -f "wall %e s, user %U s" halikit train --preset mnist --data "mnist:$DIR" --out runs/mnist-l2
for classifier in network neighbours; do halikit evaluate runs/mnist-l2 --test --classifier "$classifier" --json; done >mnist.json
