#!/usr/bin/env bash
# Creates the environments of the tests that run other projects against this one: .peers/lerobot and .peers/vla-eval.
# usage: peers.sh PYTHON, which must be 3.12 or newer
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || {
    echo "LeRobot 0.6 needs Python 3.12 or newer; $python is $("$python" -V)" >&2
    exit 1
}
for peer in lerobot vla-eval; do
    [ -x ".peers/$peer/bin/python" ] || "$python" -m venv ".peers/$peer"
done
# metaworld does not run with mujoco 4
.peers/lerobot/bin/python -m pip install --quiet --editable . --editable plugins/lerobot_policy_policysmith \
    'lerobot[training,evaluation,metaworld]==0.6.1' 'mujoco<4'
.peers/vla-eval/bin/python -m pip install --quiet --editable . 'vla-eval==0.8.0'
