#!/usr/bin/env bash
# Install, pre-train a small masked autoencoder on handwritten digits, and show its results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
exec .venv/bin/python tools/quickstart.py "$@"
