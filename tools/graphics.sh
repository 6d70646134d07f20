#!/usr/bin/env bash
# Installs EGL, with which the simulator renders without a screen, if it is missing.
# usage: graphics.sh PYTHON
set -euo pipefail

has_egl() { "$1" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("EGL") is None)'; }

has_egl "$1" && exit 0
bash "$(dirname "$0")/apt.sh" "The simulator renders with EGL, which is missing." libegl1 libgl1 libegl-mesa0
has_egl "$1"
