#!/usr/bin/env bash
# Install what is missing and run all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
.venv/bin/ruff check .
exec .venv/bin/python -m pytest "$@"
