#!/usr/bin/env bash
# Brings README.md and the index of names up to date and builds the site into _docs/: with Quarto where it is
# installed, else with pandoc. Both sites are checked: links, pictures, sounds, references, outside addresses.
# usage: bash scripts/docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if command -v quarto >/dev/null; then
  echo "[docs] Quarto $(quarto --version)"
  python scripts/build_docs --sources
  nbdev_docs
  python scripts/build_docs --sources   # nbdev wrote a README of its own
  python scripts/build_docs --check || echo "[docs] the site is there, with the faults above"
else
  echo "[docs] Quarto isn't installed ('pip install quarto-cli' brings it where there is a network): pages by pandoc"
  python scripts/build_docs
fi
echo "[docs] open _docs/index.html"
