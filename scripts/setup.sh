#!/usr/bin/env bash
# Makes the environment: .venv with the locked packages and this package in it (editable).
# Does nothing when nothing changed.   usage: bash scripts/setup.sh [--force] [--cpu]
#   --force   makes it anew, with CUDA unless --cpu is given too
#   --cpu     takes PyTorch's CPU build, without the CUDA libraries and Triton (3.3 GB less on Linux);
#             later calls without an option keep it. These builds are not in the lock: same versions, but no hashes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD env=$PWD/.venv stamp=$PWD/.venv/amcl_suite.stamp
kind=locked made=$(cat "$env/amcl_suite.kind" 2>/dev/null || true)   # of PyTorch's build: wanted, and there

say()  { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] FAILED: %s\n[setup] remedy: %s\n' "$1" "$2" >&2; exit 1; }

# What the environment was made from: lock, project file, place of this checkout, Python, kind of PyTorch.
fingerprint() {
  "$env/bin/python" - "$root" "$kind" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = b"".join((root / name).read_bytes() for name in ("requirements.lock", "pyproject.toml", "scripts/setup.sh"))
print(hashlib.sha256(text + f"{root} {sys.version} {sys.argv[2]}".encode()).hexdigest())
PY
}

[[ -z "$made" ]] || kind=$made
for option in "$@"; do
  case "$option" in
    --force) rm -f "$stamp"; [[ " $* " == *" --cpu "* ]] || kind=locked ;;
    --cpu) kind=cpu ;;
    *) fail "unknown argument $option" "usage: bash scripts/setup.sh [--force] [--cpu]" ;;
  esac
done
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
[[ $kind == cpu ]] && needed=4 || needed=10
space="free some disk space (the environment needs about $needed GB with the download cache, $free_gb GB are free here), then run this again"
(( free_gb >= needed )) || say "    note: only $free_gb GB are free here; a first installation needs about $needed GB"

say "2/4 virtual environment in .venv"
is_good "$env/bin/python" || rm -rf "$env"
if [[ ! -x "$env/bin/python" ]]; then   # without the module ensurepip (Debian) the environment has no pip of its own: that is enough
  "$python" -m venv "$env" >/dev/null 2>&1 || { rm -rf "$env"; "$python" -m venv --without-pip "$env"; } || fail "could not make $env" "$space"
fi

[[ $kind == cpu ]] && size="without CUDA: 3.3 GB less on Linux" || size="3 to 6 GB at the first time"
say "3/4 locked packages (requirements.lock, verified by hash; $size)"
export VIRTUAL_ENV=$env
[[ -z "${PIP_INDEX_URL:-}" || -n "${UV_DEFAULT_INDEX:-}" ]] || export UV_DEFAULT_INDEX=$PIP_INDEX_URL   # uv doesn't read pip's settings
[[ -z "${PIP_CERT:-}" || -n "${SSL_CERT_FILE:-}" ]] || export SSL_CERT_FILE=$PIP_CERT
network="check the network (a mirror can be named in PIP_INDEX_URL or UV_DEFAULT_INDEX); if it is fine, $space"
uv=$(command -v uv || true); [[ -n "$uv" ]] || uv=$env/bin/uv
only_uv=$(mktemp) without_torch=$(mktemp); trap 'rm -f "$only_uv" "$without_torch"' EXIT
if [[ ! -x "$uv" ]]; then
  say "    installing uv into .venv"
  awk '/^uv==/ {p = 1} p {print} p && !/\\$/ {exit}' requirements.lock > "$only_uv"
  if "$env/bin/python" -m pip --version >/dev/null 2>&1; then pip=("$env/bin/python" -m pip)
  elif "$python" -m pip --version >/dev/null 2>&1; then pip=("$python" -m pip --python "$env/bin/python")
  else fail "neither uv nor pip is installed" "install one of them (Debian and Ubuntu: apt install python3-pip), then run this again"; fi
  "${pip[@]}" install --quiet --require-hashes -r "$only_uv" || fail "could not install uv" "$network"
fi

# Installs PyTorch's CPU build in the locked versions, then everything else from the lock.
install_cpu() {
  local name version torch=() cuda=() fresh=()
  for name in torch torchvision torchaudio; do
    version=$(awk -F'[= ]+' -v name="$name" '$1 == name {print $2; exit}' requirements.lock)
    torch+=("$name==$version"); [[ $made == cpu ]] || fresh+=(--reinstall-package "$name")
  done
  UV_TORCH_BACKEND=${UV_TORCH_BACKEND:-cpu} "$uv" pip install --no-deps ${fresh[@]+"${fresh[@]}"} "${torch[@]}" ||
    "$uv" pip install --no-deps ${fresh[@]+"${fresh[@]}"} "${torch[@]/%/+cpu}" ||
    fail "no CPU build of PyTorch could be had" "check the network, or name an index that holds these builds in UV_INDEX; without --cpu the locked build is installed"
  awk '/^[^ #]/ {p = !/^(torch|torchvision|torchaudio|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/} p' requirements.lock > "$without_torch"
  "$uv" pip install --no-deps --require-hashes -r "$without_torch" || fail "could not install the locked packages" "$network"
  while read -r name; do cuda+=("$name"); done < <(awk -F= '/^(triton|nvidia-|cuda-)/ {print $1}' requirements.lock)
  "$uv" pip uninstall --quiet "${cuda[@]}"    # what an environment with CUDA leaves behind
}

if [[ $kind == cpu ]]; then install_cpu
else   # a CPU build has the same version: without a word, it would be taken for the locked one
  fresh=(); [[ $made != cpu ]] || fresh=(--reinstall-package torch --reinstall-package torchvision --reinstall-package torchaudio)
  "$uv" pip install --require-hashes ${fresh[@]+"${fresh[@]}"} -r requirements.lock || fail "could not install the locked packages" "$network"
fi
echo "$kind" > "$env/amcl_suite.kind"

say "4/4 amcl_suite itself (editable)"
"$uv" pip install --quiet --no-deps --no-build-isolation -e . || fail "could not install this checkout" "$space"
"$env/bin/python" -c 'import amcl_suite, torch' || fail "the environment doesn't work" "bash scripts/setup.sh --force; if it fails again, remove .venv first"
fingerprint > "$stamp"
say "done; 'source .venv/bin/activate' makes the command amcl available"
