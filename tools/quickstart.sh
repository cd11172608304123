#!/usr/bin/env bash
# Set up, pre-train a small masked autoencoder on handwritten digits, show what it learnt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
exec .venv/bin/python tools/quickstart.py "$@"
