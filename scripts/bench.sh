#!/usr/bin/env bash
# Measures the speed page: engine against plain loop, share of data drawing. Stores nbs/90_results/records/speed.json.
# usage: bash scripts/bench.sh [PART]     PART: mcl, start, separation, ensembles, objects, interactive or audition; the others are kept
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p nbs/90_results/records runs/bench
printf '[bench] measuring; close other programs, this takes a few minutes\n'
papermill nbs/90_results/990_speed.ipynb runs/bench/990_speed.ipynb -p measure True -p part "${1:-}" --cwd nbs/90_results --log-level ERROR --no-progress-bar
printf '[bench] stored nbs/90_results/records/speed.json\n'
