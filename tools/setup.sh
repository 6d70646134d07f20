#!/usr/bin/env bash
# Creates the virtual environment and installs the project with everything its demo and tests use.
# usage: setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "policysmith needs Python 3.11 or newer; $python is $("$python" -V). Try: make PYTHON=python3.12" >&2
    exit 1
}
if [ ! -x "$venv/bin/python" ] && ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    echo "The venv module is missing. Run: sudo apt-get install -y python3-venv" >&2
    exit 1
fi
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --editable '.[sim,weights,dev]'
