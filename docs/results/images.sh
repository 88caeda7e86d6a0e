#!/usr/bin/env bash
# Packs data, trains models of images and scores them: images.sh DIR [OPTION OF halikit train]…
# CELEBA, CIFAR and MNIST are the places of the data, as they follow celeba:, folder: and mnist: in a data spec; a set
# without a place and without a pack in DIR is left out. Other variables, with their defaults:
#   SETS    faces32 faces64 cifar10 mnist
#   SEEDS   0 1 2
#   NAME    default: name of the runs with these options
#   SPLIT   validation, or test
#   SIDE    96: side of the feature network's input
# What exists in DIR is not made again, and an interrupted training continues:
#   CELEBA=downloads/celeba SETS=faces32 NAME=l4 images.sh out --levels 4 --steps 4000
# Scores go to DIR/images.jsonl, pictures to DIR/NAME-SET-sSEED-SPLIT.png.
set -euo pipefail
DIR=${1:?usage: images.sh DIR [OPTION OF halikit train]…}
shift
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
script=$(dirname "$0")/images.py
name=${NAME:-default} split=${SPLIT:-validation}
mkdir -p "$DIR/runs"

train() { # RUN OPTION…
    local run=$1 options=("${@:2}")
    [ ! -f "$run/done" ] || return 0
    if [ -d "$run/checkpoints" ]; then
        rm -f "$run.seconds"
        halikit --quiet train "${options[@]}" --out "$run" --resume
    else
        # The processor time of an interrupted training is not known.
        /usr/bin/time -f "%U %S" -o "$run.seconds" halikit --quiet train "${options[@]}" --out "$run"
        mv "$run.seconds" "$run/processor_seconds.txt"
    fi
    touch "$run/done"
}

for set in ${SETS:-faces32 faces64 cifar10 mnist}; do
    case $set in
        faces32 | faces64) spec=${CELEBA:+celeba:$CELEBA} size=(--size "${set#faces}") ;;
        cifar10) spec=${CIFAR:+folder:$CIFAR} size=(--size 32) ;;
        mnist) spec=${MNIST:+mnist:$MNIST} size=() ;;
        *) echo "images.sh: $set is none of faces32, faces64, cifar10 and mnist" >&2 && exit 2 ;;
    esac
    pack=$DIR/$set.pack
    if [ ! -f "$pack" ]; then
        [ -n "$spec" ] || continue
        halikit data pack "$spec" "$pack" "${size[@]}"
    fi
    for seed in ${SEEDS:-0 1 2}; do
        run=$DIR/runs/$name-$set-s$seed
        train "$run" --data "pack:$pack" --seed "$seed" "$@"
        [ ! -f "$run/scored-$split" ] || continue
        python "$script" score "$run" "pack:$pack" --split "$split" --side "${SIDE:-96}" \
            --cache "$DIR/features.npz" --out "$DIR/images.jsonl"
        python "$script" picture "$run" "pack:$pack" "$DIR/$name-$set-s$seed-$split.png" --split "$split"
        touch "$run/scored-$split"
    done
done
