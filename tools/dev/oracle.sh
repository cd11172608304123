#!/usr/bin/env bash
# Make .oracle, an environment with real PyTorch for tests that compare with it, and print the path
# of its interpreter. Nothing else uses it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ ! -x .oracle/bin/python ] || ! .oracle/bin/python -c 'import torch, transformers, PIL' 2>/dev/null; then
  for candidate in python3.11 python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[12].*/bin/python python3; do
    if "$candidate" -c 'import sys, venv; assert sys.version_info >= (3, 10)' 2>/dev/null; then
      "$candidate" -m venv .oracle
      break
    fi
  done
  .oracle/bin/python -m pip --disable-pip-version-check install -q torch==2.13.0 transformers==5.23.0 pillow==13.0.0 >&2
fi
echo "$PWD/.oracle/bin/python"
