#!/usr/bin/env bash
# All tests, in three rings: rules for the notebooks, checks inside the notebooks, pytest.
# Every ring runs even if an earlier one fails.   usage: bash scripts/test.sh [--fast] [--changed [--base REVISION]]
#   --fast      leaves out tests marked slow, pages of experiments and notebooks that take over three seconds
#   --changed   runs what differs from the main branch, or from REVISION, by content, imports or data
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { echo "usage: bash scripts/test.sh [--fast] [--changed [--base REVISION]]" >&2; exit 2; }
fast=() marks=() changed="" base=""
while (( $# )); do
  case "$1" in
    --fast) fast=(--fast) marks=(-m "not slow") ;;
    --changed) changed=yes ;;
    --base) base=${2:-}; [[ -n "$base" ]] || usage; shift ;;
    *) usage ;;
  esac
  shift
done
[[ -z "$base" || -n "$changed" ]] || usage
bash scripts/setup.sh || exit 1
unset PYTHONDONTWRITEBYTECODE   # or each of hundreds of processes compiles torch anew, 15 s at a time
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=agg PYTHONUNBUFFERED=1
log=$(mktemp); trap 'rm -f "$log"' EXIT

ring() {  # ring NAME COMMAND...: run it, say how long it took, return its status
  local name=$1 start=$SECONDS status; shift
  printf '\n[test] %s: %s\n' "$name" "$*" | cut -c1-300
  "$@"; status=$?
  (( status == 0 )) && result="passed" || result="FAILED"
  results+=("$(printf '%-10s %s (%s s)' "$name" "$result" "$((SECONDS - start))")")
  return $status
}

pick() {  # pick KIND: read into `picked` what --changed runs of "notebooks" or "tests"
  local line names; picked=()
  names=$(scripts/changed "$1" ${base:+--base "$base"}) || exit 2
  while IFS= read -r line; do [[ -z "$line" ]] || picked+=("$line"); done <<< "$names"
}

run_pytest() {  # one worker more than cores, as some tests wait; tests/conftest.py says who gets what
  local cores; cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
  python -m pytest -q -n $(( (cores < 4 ? cores : 4) + 1 )) --color=no --durations=5 ${marks[@]+"${marks[@]}"} "$@" | tee "$log"
  local status=${PIPESTATUS[0]}
  if (( status == 5 )) && [[ -n "$changed" && ${#marks[@]} -gt 0 ]]; then status=0; fi   # all that changed is slow
  return "$status"
}

results=() failed=0
ring rules scripts/check_notebooks || failed=1
picked=(nbs); [[ -z "$changed" ]] || pick notebooks
if (( ${#picked[@]} )); then ring notebooks scripts/test_notebooks ${fast[@]+"${fast[@]}"} "${picked[@]}" || failed=1
else results+=("notebooks  nothing changed"); fi
picked=(tests); [[ -z "$changed" ]] || pick tests
if (( ${#picked[@]} )); then ring pytest run_pytest "${picked[@]}" || failed=1
else results+=("pytest     nothing changed"); fi

printf '\n[test] summary\n'
printf '[test]   %s\n' "${results[@]}"
[[ ! -s "$log" ]] || printf '[test]   pytest: %s\n' "$(tail -n 1 "$log")"
(( ! ${#fast[@]} )) || printf '[test]   left out by --fast: tests marked slow, pages of experiments, notebooks over three seconds\n'
exit "$failed"
