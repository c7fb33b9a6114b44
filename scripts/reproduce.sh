#!/usr/bin/env bash
# The main job from a bare machine: environment, then every run of the job "headline", then its report.
# Finished runs are skipped, killed ones go on.   usage: bash scripts/reproduce.sh [options of `amcl run`, such as --workers 2]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
unset PYTHONDONTWRITEBYTECODE   # or every run compiles its libraries anew
export PATH=$PWD/.venv/bin:$PATH
status=0
amcl run headline "$@" || status=$?
amcl report headline || status=$?
exit "$status"
