#!/usr/bin/env bash
# Writes constraints.txt: the packages of .venv, exactly, without the project itself and without local version
# parts (torch 2.13.0+cpu becomes 2.13.0, which a CUDA build satisfies too).
set -euo pipefail
cd "$(dirname "$0")/.."

{
  sed -n '/^#/p' constraints.txt
  .venv/bin/python -m pip --disable-pip-version-check list --format=freeze --exclude pip --exclude-editable |
    sed -E 's/\+[^+]*$//' | tr '[:upper:]_' '[:lower:]-' | LC_ALL=C sort
} >constraints.new
mv constraints.new constraints.txt
