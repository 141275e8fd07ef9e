#!/usr/bin/env bash
# Writes both locks; with the argument `check` it only proves that pyproject.toml resolves under them, for each Python.
#   constraints.txt      the packages of .venv (CPU), after an upgrade that passes `make test`
#   constraints-gpu.txt  what a resolver finds for Linux with CUDA, with the versions of the CPU where they fit
# Neither names the project itself or local version parts (torch 2.13.0+cpu becomes 2.13.0).
set -euo pipefail
cd "$(dirname "$0")/.."

# Installed without its requirements (pyproject.toml says why), so no resolver sees it; 2.4.0 was never run.
pyserini="pyserini==1.6.0; python_version < '3.12'
pyserini==2.4.0; python_version >= '3.12'"

compile() { # PYTHON ARGUMENT...
  .venv/bin/uv pip compile -q --no-header --no-annotate --python-version "$1" \
    --python-platform x86_64-manylinux_2_28 "${@:2}"
}

resolve() { # PYTHON ACCELERATOR ARGUMENT...
  compile "$1" pyproject.toml --extra "$2" --extra lucene --extra dev "${@:3}"
}

if [[ ${1:-} == check ]]; then
  for python in 3.11 3.12; do
    resolve "$python" cpu --constraints constraints.txt >/dev/null
    resolve "$python" gpu --constraints constraints-gpu.txt >/dev/null
    compile "$python" --no-deps - <<<"$pyserini" >/dev/null
  done
  echo "both locks resolve for Python 3.11 and 3.12"
  exit
fi

{
  sed -n '/^#/p' constraints.txt
  {
    .venv/bin/python -m pip --disable-pip-version-check list --format=freeze --exclude pip --exclude pyserini \
      --exclude-editable | sed -E 's/\+[^+]*$//' | tr '[:upper:]_' '[:lower:]-'
    echo "$pyserini"
  } | LC_ALL=C sort
} >constraints.new
mv constraints.new constraints.txt

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
cp constraints.txt "$fresh" # what uv finds in the output file is what it prefers
resolve 3.11 gpu --output-file "$fresh" >/dev/null
{
  echo "# The environment of a machine with GPUs, exactly: what ACCELERATOR=gpu installs."
  echo "# Written by \`make lock\`; never edited by hand."
  { grep -E '^[a-z0-9.-]+==' "$fresh" | sed -E 's/\+[^+;]*$//'; echo "$pyserini"; } | LC_ALL=C sort -u
} >constraints-gpu.txt
