#!/usr/bin/env bash
# Build the documentation site into build/site; a warning is an error. Its tools have an environment
# of their own, .cache/docs, of Python 3.10 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=.cache/docs
wanted=$(sha256sum <tools/dev/docs.txt)
if [ "$(cat $folder/.installed 2>/dev/null)" != "$wanted" ]; then
  for python in .venv/bin/python python3.10 python3.11 python3.12 python3; do
    if "$python" -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10)' 2>/dev/null; then
      "$python" -m venv --clear $folder
      break
    fi
  done
  if [ ! -x $folder/bin/python ]; then
    echo 'error: the documentation needs Python 3.10 or newer with venv' >&2
    exit 1
  fi
  $folder/bin/python -m pip --disable-pip-version-check install -q --no-deps -r tools/dev/docs.txt
  echo "$wanted" >$folder/.installed
fi
# The theme's advertisement would stand among the warnings.
NO_MKDOCS_2_WARNING=1 $folder/bin/python -m mkdocs build --strict --quiet
echo 'docs: build/site/index.html'
