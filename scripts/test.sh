#!/usr/bin/env bash
# All tests, in three rings: rules for the notebooks, checks inside the notebooks, pytest.
# Every ring runs even if an earlier one fails.   usage: bash scripts/test.sh [--fast]   (--fast leaves out tests marked slow)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks=()
case "${1:-}" in
  "") ;;
  --fast) marks=(-m "not slow") ;;
  *) echo "usage: bash scripts/test.sh [--fast]" >&2; exit 2 ;;
esac
bash scripts/setup.sh || exit 1
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=agg
log=$(mktemp); trap 'rm -f "$log"' EXIT

ring() {  # ring NAME COMMAND...: run it, say how long it took, return its status
  local name=$1 start=$SECONDS status; shift
  printf '\n[test] %s: %s\n' "$name" "$*"
  "$@"; status=$?
  (( status == 0 )) && result="passed" || result="FAILED"
  results+=("$(printf '%-10s %s (%s s)' "$name" "$result" "$((SECONDS - start))")")
  return $status
}

results=() failed=0
ring rules scripts/check_notebooks || failed=1
ring notebooks nbdev_test --n_workers 2 || failed=1
run_pytest() { python -m pytest -q -n 2 --color=no --durations=5 ${marks[@]+"${marks[@]}"} tests | tee "$log"; return "${PIPESTATUS[0]}"; }
ring pytest run_pytest || failed=1

printf '\n[test] summary\n'
printf '[test]   %s\n' "${results[@]}"
printf '[test]   pytest: %s\n' "$(tail -n 1 "$log")"
exit "$failed"
