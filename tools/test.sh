#!/usr/bin/env bash
# Set up what is missing and run all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
bash tools/dev/check.sh
exec .venv/bin/python -m pytest "$@"
