#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: all extras, every platform, every version with its hashes, no registry addresses.
# PyTorch stays at the version under [tool.uv] there, with which the stored numbers were made, also with --upgrade.
# usage: bash scripts/relock.sh [options of `uv pip compile`, such as --upgrade]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:$PWD/.venv/bin
uv pip compile pyproject.toml --all-extras --python-version 3.11 --universal --generate-hashes \
  --no-emit-index-url --no-header -o requirements.lock "$@" >/dev/null
echo "requirements.lock: $(grep -c '^[a-z].*==' requirements.lock) packages"
