#!/usr/bin/env bash
# Installs the Debian packages that only tests and demos need: a browser, Slurm, a speech synthesiser, measured ears.
# Does nothing when they are there; where it can't install them, it says so, and those tests skip.
# usage: bash scripts/system.sh
set -uo pipefail

PATH=$PATH:${SBIN:-/usr/sbin}   # daemons are there, and only root's path names it
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }   # need COMMAND PACKAGE
need chromium chromium
need slurmctld slurm-wlm
need munged munge
need espeak-ng espeak-ng
[[ -e /usr/share/libmysofa/MIT_KEMAR_normal_pinna.sofa ]] || missing+=(libmysofa1)   # measured ears
(( ${#missing[@]} )) || exit 0

say() { printf '[system] %s\n' "$*"; }
skip() {
  say "$1: ${missing[*]}"
  say "the tests that need them skip; to run them, as root: apt-get install ${missing[*]}"
  exit 0
}
command -v apt-get >/dev/null || skip "missing, and there is no apt-get"
(( EUID == 0 )) || skip "missing, and only root can install"

say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update >/dev/null 2>&1
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" fonts-dejavu fonts-liberation >/dev/null 2>&1 || skip "could not install"
