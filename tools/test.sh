#!/usr/bin/env bash
# Install what is missing and run all tests, on two workers; arguments go to pytest. With --quick
# first, those that start no programs of the project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
bash tools/dev/check.sh
if [ "${1:-}" = --quick ]; then
  set -- -m quick "${@:2}"
fi
exec .venv/bin/python -m pytest -n 2 "$@"
