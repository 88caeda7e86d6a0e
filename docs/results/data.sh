#!/usr/bin/env bash
# Packs three data sets and trains for 200 steps on each through the command line: data.sh DATA OUT.
# DATA holds mnist/, cifar10/cifar10-jpeg.tar.gz and celeba/, as data.md says; times go to OUT/times.txt.
set -euo pipefail
export OMP_NUM_THREADS=1
data=$1 out=$2
mkdir -p "$out"
timed() { /usr/bin/time -f "$1 wall %e s, user %U s, at most %M KiB" -a -o "$out/times.txt" "${@:2}" >>"$out/log.txt"; }
timed pack-mnist halikit data pack "mnist:$data/mnist" "$out/mnist.pack"
timed pack-cifar10 halikit data pack "folder:$data/cifar10/cifar10-jpeg.tar.gz" "$out/cifar10.pack" --size 32
timed pack-celeba halikit data pack "celeba:$data/celeba" "$out/celeba.pack" --size 64
for source in "pack:$out/mnist.pack" "pack:$out/celeba.pack" "folder:$data/cifar10/cifar10-jpeg.tar.gz"; do
    timed "train $source" halikit train --levels 2 --data "$source" --steps 200 --batch-size 16 --set evaluate_every=100 \
        --out "$out/$(basename "$source" | cut -d. -f1)"
done
