#!/usr/bin/env bash
# Builds the site into _docs/ and README.md: with Quarto where it is installed, else with pandoc (plain pages, same checks).
# usage: bash scripts/docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if command -v quarto >/dev/null; then
  echo "[docs] Quarto $(quarto --version): full site"
  nbdev_docs
  python scripts/build_docs --readme
else
  echo "[docs] Quarto isn't installed ('pip install quarto-cli' brings it where there is a network): plain pages by pandoc"
  python scripts/build_docs
fi
echo "[docs] open _docs/index.html"
