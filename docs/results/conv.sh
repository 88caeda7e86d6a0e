#!/usr/bin/env bash
# Makes the numbers of conv.md. DIR holds mnist/ (the four official files) and celeba/ (images and attributes).
set -euo pipefail
DIR=${1:?usage: conv.sh DIR}
export OMP_NUM_THREADS=1
steps=(--steps 6000 --set evaluate_every=1000)
halikit data pack "celeba:$DIR/celeba" faces.pack --size 32
halikit train --levels 2 --data pack:faces.pack --set data.flip=true "${steps[@]}" --out runs/celeba32-l2
halikit train --levels 2 --data "mnist:$DIR/mnist" "${steps[@]}" --out runs/mnist-conv-l2
halikit evaluate labels runs/mnist-conv-l2
halikit train --levels 3 --data pack:faces.pack --set maps=1 --set input_noise=0.4 --set data.flip=true --precision bf16 \
    --steps 15000 --out runs/celeba32-l3
for run in runs/celeba32-l2 runs/mnist-conv-l2; do
    for metric in reconstruction health samples; do halikit evaluate "$metric" "$run"; done
    halikit inpaint "$run" --method paper --measured 500
done
