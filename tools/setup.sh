#!/usr/bin/env bash
# Creates the virtual environment and installs the project with everything that its demo and tests use. Installs the
# venv module of Debian if it is missing and permissions allow.
# usage: setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "policysmith needs Python 3.11 or newer; $python is $("$python" -V). Try: make PYTHON=python3.12" >&2
    exit 1
}

has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

if [ ! -x "$venv/bin/python" ]; then
    if ! has_venv; then
        package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        bash "$(dirname "$0")/apt.sh" "Python's venv module is missing." "$package"
    fi
    "$python" -m venv "$venv" || { rm -rf "$venv"; exit 1; }
fi
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --editable '.[sim,weights,export,dev]'
