#!/usr/bin/env bash
# Tables 1 and 2, and the quality of samples: HALI, ALI and the VAE on the same data, networks and budget.
#   tables.sh digits
#   tables.sh mnist DIR
#   tables.sh celeba64 FILE     (on a GPU; STEPS=20000 shortens it; run again to go on where it was stopped)
#   tables.sh cifar10 SPEC
#   tables.sh small NAME SPEC   (a CPU: the default levels and size for the data, 7,000 steps)
set -euo pipefail
WHAT=${1:?usage: tables.sh digits|mnist|celeba64|cifar10|small [NAME] [DATA]}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
case $WHAT in
    digits) data=digits ;;
    mnist) data="mnist:${2:?where are the files?}" ;;
    celeba64) data="celeba:${2:?where are the files?}" ;;
    cifar10) data=${2:?where are the data?} ;;
    small) NAME=${2:?what is it called?} data=${3:?where are the data?} ;;
esac
if [ "$WHAT" = small ]; then
    WHAT=$NAME
    # EXTRA is for the games alone: a VAE has neither a discriminator nor half precision.
    STEPS=${STEPS:-7000} common="--set data.flip=true"
    declare -A settings=([hali]="$common ${EXTRA:-}" [ali]="$common --baseline ali ${EXTRA:-}" [vae]="$common --baseline vae")
else
    declare -A settings=([hali]="--preset $WHAT" [ali]="--preset ali_$WHAT" [vae]="--preset vae_$WHAT")
fi
runs=()
for kind in hali ali vae; do
    out="runs/$WHAT-$kind"
    runs+=("$out")
    resume=()
    [ -d "$out/checkpoints" ] && resume=(--resume)
    # shellcheck disable=SC2086 # settings are several words
    [ -f "$out/done" ] || halikit train ${settings[$kind]} --data "$data" --out "$out" ${STEPS:+--steps "$STEPS"} "${resume[@]}"
    touch "$out/done"
done
vgg="runs/vgg_$WHAT.safetensors"
halikit evaluate svm "${runs[@]}" --format csv --out "svm_$WHAT.csv"
halikit evaluate attributes "${runs[@]}" --vgg "$vgg" --width "${WIDTH:-64}" --epochs "${EPOCHS:-20}" \
    --format csv --out "attributes_$WHAT.csv"
for run in "${runs[@]}"; do
    for noise in "" --noiseless; do
        halikit evaluate samples "$run" --test $noise --json
        halikit evaluate samples "$run" --test $noise --features "$vgg" --json
    done
    halikit evaluate reconstruction "$run" --test --json
done >"samples_$WHAT.jsonl"
