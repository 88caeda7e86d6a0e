#!/usr/bin/env bash
# Makes the raw numbers of digits.md: one line of JSON a run, in digits.jsonl; the time of each run in times.txt.
set -euo pipefail
export OMP_NUM_THREADS=1
# bfloat16 wants a CPU that has it: leave it out elsewhere.
fast=(--set compile=default --precision bf16)
run() { # NAME OPTION…
    local name=$1
    shift
    /usr/bin/time -f "$name wall %e s, user %U s" -a -o times.txt halikit train "$@" "${fast[@]}" --out "runs/$name" >"$name.log"
    halikit evaluate labels "runs/$name" --json >>digits.jsonl
}

# The settings as they are, scored on the 297 held-out digits.
for seed in 0 1 2 3 4 5 6 7 8 9; do run "d3-s$seed" --levels 3 --seed "$seed"; done
for seed in 0 1 2 3 4; do run "d5-s$seed" --levels 5 --seed "$seed"; done
# As many core minutes as growing five levels took.
for seed in 0 1 2 3 4; do run "d5-long-s$seed" --levels 5 --seed "$seed" --steps 12000; done
for seed in 0 1 2; do run "d8-s$seed" --levels 8 --seed "$seed"; done
run d12-s0 --levels 12 --steps 7200
run d20-s0 --levels 20 --steps 6000

# What they were chosen on: the first 1,350 digits to train, the 150 behind them to score.
python choose_digits.py digits1500.npz
choose() { # NAME LEVELS STEPS SEED OPTION…
    run "$1" --data array:digits1500.npz --levels "$2" --steps "$3" --seed "$4" "${@:5}"
}
rates() { echo "--set learning_rate=$1 --set discriminator_learning_rate=$2 --set decay_from=$3"; }
# shellcheck disable=SC2046 # settings are several words
{
    base="$(rates 2e-4 8e-4 0.3) --set weight_norm=true"
    choose v5 5 2500 0 $base
    choose v5-rate3 5 2500 0 $base $(rates 3e-4 1.2e-3 0.3)
    choose v5-rate4 5 2500 0 $base $(rates 4e-4 1.6e-3 0.3)
    choose v5-decay0 5 2500 0 $base $(rates 2e-4 8e-4 0.0)
    choose v5-noise.1 5 2500 0 $base --set input_noise=0.1
    choose v5-noise0 5 2500 0 $base --set input_noise=0
    choose v5-no-dropout 5 2500 0 $base --set dropout=0
    choose v5-no-weight-norm 5 2500 0 $base --set weight_norm=false
    choose v5-no-sleep 5 2500 0 $base --set sleep_weights=0
    choose v5-no-skips 5 2500 0 $base --set skips=false
    choose v5-relativistic 5 2500 0 $(rates 2e-4 2e-4 0.3) --set weight_norm=false --set objective=relativistic \
        --set gradient_penalty=0.1 --set penalty_every=4 --set penalised_joint=both --set dropout=0 --set input_noise=0
    choose v5-no-weight-norm-rate3 5 2500 0 $(rates 3e-4 1.2e-3 0.3) --set weight_norm=false
    choose v5-no-weight-norm-decay0 5 2500 0 $(rates 2e-4 8e-4 0.0) --set weight_norm=false
    choose v8-decay0 8 4000 0 $base $(rates 2e-4 8e-4 0.0)
    choose v8-rate4 8 4000 0 $base $(rates 4e-4 1.6e-3 0.3)
    choose v8-no-weight-norm-decay0 8 4000 0 $(rates 2e-4 8e-4 0.0) --set weight_norm=false
    for rate in 2 3 4; do choose "v3-rate$rate" 3 3600 0 $(rates "${rate}e-4" "$((4 * rate))e-4" 0.0) --set weight_norm=true; done
    for seed in 0 1 2; do
        choose "f1-s$seed" 5 4000 "$seed" $base $(rates 2e-4 8e-4 0.0)
        choose "f2-s$seed" 5 4000 "$seed" $base --set weight_norm=false
    done
}
