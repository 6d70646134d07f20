#!/usr/bin/env bash
# Installs Debian packages as root or with passwordless sudo; otherwise prints the command that would.
# usage: apt.sh WHAT_IS_MISSING PACKAGE...
set -euo pipefail
missing=$1
shift
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "$missing Run: sudo apt-get install -y $*" >&2
    exit 1
fi
$as_root apt-get update -qq && $as_root apt-get install -y -qq "$@" >/dev/null
