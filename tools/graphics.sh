#!/usr/bin/env bash
# Makes sure that the simulator can draw without a screen (EGL). Installs Debian's packages where that is allowed.
# usage: graphics.sh PYTHON
set -euo pipefail
packages="libegl1 libgl1 libegl-mesa0"

has_egl() { "$1" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("EGL") is None)'; }

has_egl "$1" && exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "The simulator draws with EGL, which is missing. Run: sudo apt-get install -y $packages" >&2
    exit 1
fi
$as_root apt-get update -qq && $as_root apt-get install -y -qq $packages >/dev/null
has_egl "$1"
