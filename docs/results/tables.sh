#!/usr/bin/env bash
# Tables 1 and 2: HALI, ALI and the VAE on the same data, networks and budget.
#   tables.sh digits
#   tables.sh mnist DIR
#   tables.sh celeba64 FILE     (on a GPU; STEPS=20000 shortens it; run again to go on where it was stopped)
set -euo pipefail
WHAT=${1:?usage: tables.sh digits|mnist|celeba64|cifar10 [DATA]}
case $WHAT in
    digits) data=digits ;;
    cifar10) data=${2:?where is the data?} ;;
    mnist) data="mnist:${2:?where are the files?}" ;;
    *) data="celeba:${2:?where are the files?}" ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
runs=()
for preset in "$WHAT" "ali_$WHAT" "vae_$WHAT"; do
    out="runs/$preset"
    runs+=("$out")
    resume=()
    [ -d "$out/checkpoints" ] && resume=(--resume)
    [ -f "$out/done" ] || halikit train --preset "$preset" --data "$data" --out "$out" ${STEPS:+--steps "$STEPS"} "${resume[@]}"
    touch "$out/done"
done
halikit evaluate "${runs[@]}" --metric svm --format csv --out "svm_$WHAT.csv"
halikit evaluate "${runs[@]}" --metric attributes --vgg "runs/vgg_$WHAT.safetensors" --width "${WIDTH:-64}" \
    --format csv --out "attributes_$WHAT.csv"
