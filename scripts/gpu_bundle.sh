#!/usr/bin/env bash
# Make a folder with which a Linux machine with Python and PyTorch runs benchmarks/gpu.py, without network and without pip:
#   ./scripts/gpu_bundle.sh [FOLDER] [PYTHON_VERSION]     # default: .gpu, for Python 3.12
# On that machine:
#   FOLDER/run.sh                   # parity, tower, encoder, micro_batches and heads: eight minutes; --quick: one
#   FOLDER/processes.sh             # the part that needs Apache Beam, in a command of its own
# Both take the flags of benchmarks/gpu.py. Packages that the machine has are used; only missing ones are unpacked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.gpu} python_version=${2:-3.12}
if [[ -e "$folder" ]]; then
    echo "gpu_bundle: $folder exists: remove it, or name another folder" >&2
    exit 2
fi
python=.venv/bin/python
[[ -x "$python" ]] || python=python3

mkdir -p "$folder"/{wheels,wheels-beam,benchmarks,tests/data,.cache}
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" .
download() {
    local platforms=() version
    for version in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5; do
        platforms+=(--platform "${version}_x86_64")
    done
    "$python" -m pip download --quiet --only-binary=:all: --python-version "$python_version" "${platforms[@]}" \
        -c constraints.txt "$@"
}
download --no-deps --dest "$folder/wheels" \
    cffi ftfy lazy-loader numpy packaging pillow pycparser regex safetensors simplejpeg soundfile soxr wcwidth
download --dest "$folder/wheels-beam" apache-beam filelock jinja2 orjson pyarrow requests tqdm zstandard
cp benchmarks/*.py "$folder/benchmarks/"
cp tests/data/embeddings.npz "$folder/tests/data/"
cp .cache/bpe_simple_vocab_16e6.txt.gz "$folder/.cache/"
[[ ! -d .cache/wordnet ]] || cp -r .cache/wordnet "$folder/.cache/"

cat >"$folder/unpack.py" <<'PYTHON'
"""Unpack the wheels of the folders that are named, unless their package is installed."""

import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for folder in sys.argv[1:]:
    for wheel in sorted(Path(folder).glob("*.whl")):
        name = wheel.name.split("-")[0].replace("_", "-")
        try:
            version(name)
        except PackageNotFoundError:
            zipfile.ZipFile(wheel).extractall("site")
PYTHON

command_file() {
    cat >"$folder/$1" <<BASH
#!/usr/bin/env bash
set -euo pipefail
cd "\$(dirname "\${BASH_SOURCE[0]}")"
export PYTHONPATH="\$PWD/site" PYTHONUNBUFFERED=1
python3 unpack.py $2
exec python3 benchmarks/gpu.py $3 "\$@"
BASH
    chmod +x "$folder/$1"
}
command_file run.sh wheels "parity tower encoder micro_batches heads"
command_file processes.sh "wheels wheels-beam" processes
du -sh "$folder"
