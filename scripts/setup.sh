#!/usr/bin/env bash
# Set the project up in .venv: ./scripts/setup.sh [EXTRA], with EXTRA as in setup.py (test, browse, gcp, aws, yaml, bench).
# PYTHON names the interpreter (default python3); pip's PIP_* variables apply. Quick if nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
python="${PYTHON:-python3}"
log() { echo "setup: $*" >&2; }

if ! command -v "$python" >/dev/null; then
    log "there is no $python: install Python 3.11 to 3.14, or name one, as in PYTHON=/usr/bin/python3.11 $0"
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; then
    log "$python is $("$python" --version 2>&1), but Python 3.11 to 3.14 is required: name one, as in PYTHON=python3.11 $0"
    exit 1
fi
if [[ ! -x .venv/bin/python ]]; then
    log "making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv # the next run would take half an environment for a complete one
        log "$python cannot make virtual environments; on Debian and Ubuntu, install python3-venv"
        exit 1
    fi
fi

# The stamp says for which requirements the packages were installed; it is removed together with .venv.
stamp=".venv/installed-${extra:-plain}"
required="$(cat setup.py constraints.txt | .venv/bin/python -c 'import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read() + os.getcwd().encode()).hexdigest())')"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$required" ]]; then
    log "installing${extra:+ with the extra $extra}; the first time this takes some minutes"
    # torch first, alone: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS can name its CPU build, which is far smaller.
    .venv/bin/python -m pip install --quiet -c constraints.txt torch
    .venv/bin/python -m pip install --quiet -c constraints.txt -e ".${extra:+[$extra]}"
    echo "$required" >"$stamp"
fi
if [[ ! -f .cache/bpe_simple_vocab_16e6.txt.gz ]]; then
    log "fetching the vocabulary"
    .venv/bin/audioclip fetch vocabulary >/dev/null
fi
