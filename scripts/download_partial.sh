#!/usr/bin/env bash
# Download the checkpoint AudioCLIP-Partial-Training.pt and the vocabulary into .cache, verified.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH" exec audioclip fetch partial "$@"
