#!/usr/bin/env bash
# Set the project up in .venv: ./scripts/setup.sh [EXTRA], with EXTRA as in setup.py (test, gcp, aws).
# PYTHON names the interpreter (default python3); pip's own PIP_* settings hold. Quick where nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
python="${PYTHON:-python3}"
say() { echo "setup: $*" >&2; }

if ! command -v "$python" >/dev/null; then
    say "no $python here; install Python 3.10 or newer, or name one, as in PYTHON=/usr/bin/python3.11 $0"
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    say "$python is $("$python" --version 2>&1), and 3.10 or newer is needed: name one, as in PYTHON=python3.11 $0"
    exit 1
fi
if [[ ! -x .venv/bin/python ]]; then
    say "making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv # half an environment would be taken for a whole one the next time
        say "$python cannot make virtual environments; on Debian and Ubuntu, install python3-venv"
        exit 1
    fi
fi

# The stamp says for what the packages were last installed; it lies in .venv, so that it goes when that goes.
stamp=".venv/installed-${extra:-plain}"
wanted="$(cat setup.py constraints.txt | .venv/bin/python -c 'import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read() + os.getcwd().encode()).hexdigest())')"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    say "installing${extra:+ with the extra $extra}; the first time this takes some minutes"
    # torch by itself first: with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS one can have its CPU build, which is far smaller.
    .venv/bin/python -m pip install --quiet -c constraints.txt torch
    .venv/bin/python -m pip install --quiet -c constraints.txt -e ".${extra:+[$extra]}"
    echo "$wanted" >"$stamp"
fi
if [[ ! -f .cache/bpe_simple_vocab_16e6.txt.gz ]]; then
    say "fetching the vocabulary"
    .venv/bin/audioclip-text fetch vocabulary >/dev/null
fi
