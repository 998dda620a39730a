#!/usr/bin/env bash
# Set the project up, embed the sample shards under examples/shards into out/demo, and show what came of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

checkpoint=.cache/AudioCLIP-Full-Training.pt
if [[ -f "$checkpoint" ]]; then
    echo "demo: the checkpoint is $checkpoint" >&2
else
    echo "demo: no $checkpoint here (./scripts/download_full.sh fetches it): the weights are untrained" >&2
    checkpoint=untrained
fi
.venv/bin/audioclip-text embed --input 'examples/shards/*' --output out/demo --checkpoint "$checkpoint"
echo
.venv/bin/python scripts/show.py out/demo
