#!/usr/bin/env bash
# Makes the environment: .venv with the locked packages and this package in it (editable).
# Does nothing when nothing changed.   usage: bash scripts/setup.sh [--force]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD env=$PWD/.venv stamp=$PWD/.venv/amcl_suite.stamp

say()  { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] FAILED: %s\n[setup] remedy: %s\n' "$1" "$2" >&2; exit 1; }

# What the environment was made from: lock, project file, place of this checkout, Python.
fingerprint() {
  "$env/bin/python" - "$root" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = b"".join((root / name).read_bytes() for name in ("requirements.lock", "pyproject.toml", "scripts/setup.sh"))
print(hashlib.sha256(text + f"{root} {sys.version}".encode()).hexdigest())
PY
}

if [[ "${1:-}" == --force ]]; then rm -f "$stamp"
elif [[ -n "${1:-}" ]]; then fail "unknown argument $1" "usage: bash scripts/setup.sh [--force]"; fi
if [[ -f "$stamp" && "$(cat "$stamp")" == "$(fingerprint 2>/dev/null || true)" ]]; then
  say "environment is up to date ($env)"; exit 0
fi

# One set-up at a time; a second one waits and then finds the work done.
if [[ -z "${AMCL_SETUP_LOCKED:-}" ]] && command -v flock >/dev/null; then
  AMCL_SETUP_LOCKED=1 exec flock "$root/scripts/setup.sh" bash "$root/scripts/setup.sh" "$@"
fi

say "1/4 Python >= 3.11"
is_good() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=""
for name in "$env/bin/python" python3.11 python3.12 python3.13 python3 python; do
  if command -v "$name" >/dev/null && is_good "$name"; then python=$(command -v "$name"); break; fi
done
[[ -n "$python" ]] || fail "no Python >= 3.11 with the module venv (found: $(python3 --version 2>/dev/null || echo none))" \
  "install one (Debian and Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12), then run this again"
say "    $("$python" --version) at $python"

free_gb=$(( $(df -Pk "$root" | awk 'NR==2 {print $4}') / 1048576 ))
space="free some disk space (the environment needs about 10 GB with the download cache, $free_gb GB are free here), then run this again"
(( free_gb >= 10 )) || say "    note: only $free_gb GB are free here; a first installation needs about 10 GB"

say "2/4 virtual environment in .venv"
is_good "$env/bin/python" || rm -rf "$env"
if [[ ! -x "$env/bin/python" ]]; then   # without the module ensurepip (Debian) the environment has no pip of its own: that is enough
  "$python" -m venv "$env" >/dev/null 2>&1 || { rm -rf "$env"; "$python" -m venv --without-pip "$env"; } || fail "could not make $env" "$space"
fi

say "3/4 locked packages (requirements.lock, verified by hash; 3 to 6 GB at the first time)"
export VIRTUAL_ENV=$env
[[ -z "${PIP_INDEX_URL:-}" || -n "${UV_DEFAULT_INDEX:-}" ]] || export UV_DEFAULT_INDEX=$PIP_INDEX_URL   # uv doesn't read pip's settings
[[ -z "${PIP_CERT:-}" || -n "${SSL_CERT_FILE:-}" ]] || export SSL_CERT_FILE=$PIP_CERT
network="check the network (a mirror can be named in PIP_INDEX_URL or UV_DEFAULT_INDEX); if it is fine, $space"
uv=$(command -v uv || true); [[ -n "$uv" ]] || uv=$env/bin/uv
if [[ ! -x "$uv" ]]; then
  say "    installing uv into .venv"
  only_uv=$(mktemp); trap 'rm -f "$only_uv"' EXIT
  awk '/^uv==/ {p = 1} p {print} p && !/\\$/ {exit}' requirements.lock > "$only_uv"
  if "$env/bin/python" -m pip --version >/dev/null 2>&1; then pip=("$env/bin/python" -m pip)
  elif "$python" -m pip --version >/dev/null 2>&1; then pip=("$python" -m pip --python "$env/bin/python")
  else fail "neither uv nor pip is installed" "install one of them (Debian and Ubuntu: apt install python3-pip), then run this again"; fi
  "${pip[@]}" install --quiet --require-hashes -r "$only_uv" || fail "could not install uv" "$network"
fi
"$uv" pip install --require-hashes -r requirements.lock || fail "could not install the locked packages" "$network"

say "4/4 amcl_suite itself (editable)"
"$uv" pip install --quiet --no-deps --no-build-isolation -e . || fail "could not install this checkout" "$space"
"$env/bin/python" -c 'import amcl_suite, torch' || fail "the environment doesn't work" "bash scripts/setup.sh --force; if it fails again, remove .venv first"
fingerprint > "$stamp"
say "done; 'source .venv/bin/activate' makes the command amcl available"
