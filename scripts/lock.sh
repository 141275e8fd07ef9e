#!/usr/bin/env bash
# Writes both locks; with the argument `check` it only proves that pyproject.toml resolves under them.
#   constraints.txt      the packages of .venv (CPU), after an upgrade that passes `make test`
#   constraints-gpu.txt  what a resolver finds for Linux with CUDA, with the versions of the CPU where they fit
# Neither names the project itself or local version parts (torch 2.13.0+cpu becomes 2.13.0).
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() { # ACCELERATOR ARGUMENT...
  .venv/bin/uv pip compile -q pyproject.toml --extra "$1" --extra lucene --extra dev --no-header --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "${@:2}"
}

if [[ ${1:-} == check ]]; then
  resolve cpu --constraints constraints.txt >/dev/null
  resolve gpu --constraints constraints-gpu.txt >/dev/null
  echo "both locks resolve"
  exit
fi

{
  sed -n '/^#/p' constraints.txt
  .venv/bin/python -m pip --disable-pip-version-check list --format=freeze --exclude pip --exclude-editable |
    sed -E 's/\+[^+]*$//' | tr '[:upper:]_' '[:lower:]-' | LC_ALL=C sort
} >constraints.new
mv constraints.new constraints.txt

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
cp constraints.txt "$fresh" # what uv finds in the output file is what it prefers
resolve gpu --output-file "$fresh" >/dev/null
{
  echo "# The environment of a machine with GPUs, exactly: what ACCELERATOR=gpu installs."
  echo "# Written by \`make lock\`; never edited by hand."
  { grep -E '^[a-z0-9.-]+==' "$fresh" | sed -E 's/\+[^+;]*$//'; grep '^pyserini==' constraints.txt; } | LC_ALL=C sort -u
} >constraints-gpu.txt
