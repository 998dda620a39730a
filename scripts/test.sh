#!/usr/bin/env bash
# Format, lint, words, types and tests: ./scripts/test.sh [--fast | --extra] [--coverage] [PYTEST ARGUMENTS]
# Without options it sets the project up with all that the tests need, then runs all tests but those marked `extra`, as CI does,
# and a sample of them once more with Beam as users have it: without the caches of tests/support/beam_caches.py.
#   --fast      no set-up and no network; only the tests that are marked neither `slow` nor `network` (two to five minutes)
#   --extra     the tests that are marked `extra` as well
#   --coverage  print the share of lines that the tests ran, for each package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast="" extra="" coverage=""
while [[ "${1:-}" == --fast || "${1:-}" == --extra || "${1:-}" == --coverage ]]; do
    case "$1" in
        --extra) extra=yes ;;
        --fast) fast=yes ;;
        --coverage) coverage=yes ;;
    esac
    shift
done

browser=""
if [[ -z "$fast" ]]; then
    # A browser for the tests that look at pages; without one they are skipped. It is installed while other things run.
    if ! command -v chromium >/dev/null && [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 &
        browser=$!
    fi
    ./scripts/setup.sh test
elif [[ ! -x .venv/bin/pytest ]]; then
    echo "test: the tests' packages are not installed: run ./scripts/setup.sh test" >&2
    exit 1
fi
export PATH="$PWD/.venv/bin:$PATH"

# Engines and environments of the tests take minutes to fetch and little of a core, and only the first time.
if [[ -z "$fast" && $# == 0 ]]; then
    python -m tests.support.fetch_all &
    trap "kill $! 2>/dev/null || true" EXIT
fi

# The folders are installed under other names than they have here; mypy finds them through two links.
mkdir -p .typecheck/audioclip_beam
ln -sfn ../../model .typecheck/audioclip_beam/model
ln -sfn ../../pipeline .typecheck/audioclip_beam/pipeline

ruff format --check .
ruff check .
python scripts/check_words.py
MYPYPATH=.typecheck mypy -p audioclip_beam.model -p audioclip_beam.pipeline

# The threads of models in several workers would wait for each other, which takes twice the time. Slow tests often wait for
# other processes: a third worker has the core meanwhile.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tests=(-n 3 --dist loadfile --no-loadscope-reorder)
[[ -z "$fast" ]] || tests=(-n 2 --dist loadfile --no-loadscope-reorder)
[[ -n "$fast$extra" ]] || tests+=(-m "not extra")
[[ -z "$fast" ]] || tests+=(-m "not slow and not network and not extra")
[[ -z "$coverage" ]] || tests+=(--cov --cov-report=)
[[ -n "$fast" ]] || tests+=(--durations=25)
[[ -z "$browser" ]] || wait "$browser" || echo "test: Chromium is not available" >&2
pytest "${tests[@]}" "$@"
[[ -z "$coverage" ]] || python scripts/show_coverage.py

# A sample of the tests that run jobs in their own process; not if arguments choose other tests.
if [[ -z "$fast" && $# == 0 ]]; then
    printf '\ntest: all passed; now a sample of them without the caches of Beam (BEAM_CACHES=off)\n'
    sample=(tests/dedup/test_reuse.py tests/pipeline/test_{embed,graph,metrics}.py)
    BEAM_CACHES=off pytest -q -n 2 --dist loadfile -m "not slow" "${sample[@]}"
fi
