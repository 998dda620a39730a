#!/usr/bin/env bash
# Set the project up with all that the tests need, then format, lint, types and tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh test
export PATH="$PWD/.venv/bin:$PATH"

# The folders are installed under other names than they have here; mypy finds them through two links.
mkdir -p .typecheck/audioclip_text
ln -sfn ../../model .typecheck/audioclip_text/model
ln -sfn ../../pipeline .typecheck/audioclip_text/pipeline

# A browser for the test that looks at report.html; it says so and is skipped where none can be had.
if ! command -v chromium >/dev/null && [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || echo "test: no Chromium to be had" >&2
fi

ruff format --check .
ruff check .
MYPYPATH=.typecheck mypy -p audioclip_text.model -p audioclip_text.pipeline
exec pytest -n 2 --dist loadfile "$@"
