#!/usr/bin/env bash
# Makes the numbers of analysis.md. DIR holds the four official MNIST files.
set -euo pipefail
DIR=${1:?usage: analysis.sh DIR}
export OMP_NUM_THREADS=1
halikit propositions --out propositions.png
halikit train --levels 3 --seed 2 --out runs/digits-l3
halikit train --preset mnist --data "mnist:$DIR" --set evaluate_every=500 --out runs/mnist-l2
for run in runs/digits-l3 runs/mnist-l2; do
    for method in search paper; do halikit inpaint "$run" --measured 500 --method "$method"; done
    for metric in reconstruction health samples; do halikit evaluate "$metric" "$run"; done
    halikit report "$run" --all
done
halikit evaluate reconstruction runs/digits-l3 --scale fit
for run in digits runs/mnist-l2; do python inpainting.py "$run"; done
python encode.py runs/mnist-l2 "$DIR"
