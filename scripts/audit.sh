#!/usr/bin/env bash
# Check every pinned version against PyPI's list of known vulnerabilities. Needs pip-audit (pip install pip-audit) and the
# network; a package that cannot be looked up is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v pip-audit > /dev/null || { echo "pip-audit is not installed: pip install pip-audit" >&2; exit 2; }
exec pip-audit --strict --no-deps --disable-pip --requirement constraints.txt --requirement requirements.lock "$@"
