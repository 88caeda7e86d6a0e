#!/usr/bin/env bash
# Makes the raw numbers of grown.md with halikit 0.1.0: one line of JSON a run, in grown.jsonl; the time of each run in times.txt.
set -euo pipefail
export OMP_NUM_THREADS=1
run() {
    local name=$1
    shift
    /usr/bin/time -f "$name wall %e s, user %U s" -a -o times.txt halikit train "$@" --out "runs/$name" >"$name.log"
    halikit evaluate "runs/$name" --json >>grown.jsonl
}
# bfloat16 wants a CPU that has it: leave it out elsewhere.
fast() { run "$@" --set compile=default --precision bf16; }
variants() { # of so many levels, on one seed; the rest are pairs of a name and its settings
    local levels=$1 seed=$2
    shift 2
    while [ $# -gt 0 ]; do
        # shellcheck disable=SC2086 # settings are several words
        fast "n$levels-$1-s$seed" --levels "$levels" --seed "$seed" $2
        shift 2
    done
}

# The settings as they are.
for seed in 0 1 2 3 4 5 6 7 8 9; do fast "n3-s$seed" --levels 3 --seed "$seed"; done
for seed in 0 1 2 3 4; do
    for levels in 1 2 4 5 6; do fast "n$levels-s$seed" --levels "$levels" --seed "$seed"; done
done
fast n8-s0 --levels 8
variants 5 0 \
    standardised "--set gauge=standardised" \
    nogauge "--set gauge=none --set max_scale=none" \
    pairwise "--set discriminator.form=pairwise" \
    plateau "--set grow_every=plateau" \
    together "--set grow_every=none" \
    wide16 "--set widths=[16,16,16,16,16]" \
    wide "--set widths=[96,72,56,44,32]"
variants 3 0 \
    equal-rates "--set discriminator_learning_rate=4e-4" \
    noise0 "--set input_noise=0" \
    noise.4 "--set input_noise=0.4" \
    least-squares "--set objective=least_squares" \
    relativistic "--set objective=relativistic" \
    no-dropout "--set dropout=0" \
    no-weight-norm "--set weight_norm=false" \
    constant-rates "--set final_learning_rate=1" \
    nogauge "--set gauge=none --set max_scale=none" \
    standardised "--set gauge=standardised" \
    two-d "--set d_steps=2" \
    penalty "--set gradient_penalty=0.2 --set penalised=both"

# As it was before 26 November: stages of equal length, and every level at its full rate throughout.
before() { run "$@" --set settled_rate=1.0; }
for seed in 0 1 2 3 4 5 6 7 8 9; do before "l3-s$seed" --levels 3 --seed "$seed" --set grow_every=1900; done
for seed in 0 1; do
    for levels in 1 2; do run "l$levels-s$seed" --levels "$levels" --seed "$seed"; done
    before "l4-s$seed" --levels 4 --seed "$seed" --set grow_every=2000
    before "l3-nogauge-s$seed" --levels 3 --seed "$seed" --set grow_every=1900 --set gauge=none --set max_scale=none
    run "l3-nogrowth-s$seed" --levels 3 --seed "$seed" --set grow_every=none
done
for seed in 0 1 2; do before "l5-s$seed" --levels 5 --seed "$seed" --set grow_every=2571; done
before l6-bf16-s0 --levels 6 --set grow_every=3150 --set compile=default --precision bf16
