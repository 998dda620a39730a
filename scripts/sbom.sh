#!/usr/bin/env bash
# Write a bill of materials (CycloneDX, JSON) of an environment: scripts/sbom.sh FILE [PYTHON] (default: .venv).
# Needs cyclonedx-py (pip install cyclonedx-bom), in any environment; no network.
set -euo pipefail
file=${1:?name the file to write, as in scripts/sbom.sh sbom.json}
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command -v cyclonedx-py > /dev/null || { echo "cyclonedx-py is not installed: pip install cyclonedx-bom" >&2; exit 2; }
exec cyclonedx-py environment --output-reproducible --of JSON --output-file "$file" "${2:-$root/.venv/bin/python}"
