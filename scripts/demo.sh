#!/usr/bin/env bash
# Set the project up, embed the texts, sounds and pictures in examples/ into out/, show the texts, and search one with another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

checkpoint=.cache/AudioCLIP-Full-Training.pt
if [[ -f "$checkpoint" ]]; then
    echo "demo: the checkpoint is $checkpoint" >&2
else
    echo "demo: no $checkpoint (./scripts/download_full.sh downloads it): random weights, for testing only" >&2
    checkpoint=untrained
fi
.venv/bin/audioclip embed --input 'examples/shards/*' --output out/demo --checkpoint "$checkpoint"
.venv/bin/audioclip embed --input 'examples/sounds/*' --head audio --output out/demo-sounds --checkpoint "$checkpoint"
.venv/bin/audioclip embed --input 'examples/pictures/*' --head image --output out/demo-pictures --checkpoint "$checkpoint"
echo
.venv/bin/python scripts/show.py out/demo

echo
echo "sounds for a text and for a picture (checkpoint: $checkpoint)"
.venv/bin/audioclip search out/demo-sounds "rain on a roof" examples/pictures/sun.jpg --top 3
echo
echo "pictures for a sound (checkpoint: $checkpoint)"
.venv/bin/audioclip search out/demo-pictures examples/sounds/surf.mp3 --top 3
