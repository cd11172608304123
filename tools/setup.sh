#!/usr/bin/env bash
# Make .venv with everything the project needs. Fast when nothing has changed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# oneflow 0.9.0 has wheels for these only, best first.
find_python() {
  local version candidate
  for version in 3.10 3.9 3.8; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python python3; do
      if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] &&
        "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
  done
  if command -v uv >/dev/null && uv python install -q 3.10 >&2; then
    uv python find 3.10
    return
  fi
  cat >&2 <<'END'
error: no Python 3.10, 3.9 or 3.8 (with venv) on PATH or under pyenv, and uv could not fetch one.
Install one of them (Debian or Ubuntu: python3.10 python3.10-venv; anywhere: pyenv install 3.10,
or uv from PyPI), then run this again.
END
  return 1
}

stamp=.venv/.installed
# A checkout that was moved is installed anew.
wanted=$({ echo "$root"; cat requirements.txt setup.py tools/setup.sh; } | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "error: oneflow 0.9.0 has wheels for Linux on x86-64 only" >&2
    exit 1
  fi
  python=$(find_python)
  echo "setup: $("$python" --version), installing into .venv (2 GB to download once)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  pip=(.venv/bin/python -m pip --disable-pip-version-check install -q)
  "${pip[@]}" -c requirements.txt setuptools wheel pybind11
  "${pip[@]}" --no-build-isolation --no-deps -r requirements.txt
  # Without their own requirements: LiBai's pin linters.
  "${pip[@]}" --no-build-isolation --no-deps flowvision==0.1.0 libai==0.1.1
  "${pip[@]}" --no-build-isolation --no-deps -e .
  # Found by its place first: pip has noted a path that is wrong once the checkout is moved.
  (cd .venv/lib/python3*/site-packages && echo ../../../.. >checkout.pth)
  echo "$wanted" >"$stamp"
fi
