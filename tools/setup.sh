#!/usr/bin/env bash
# Make .venv with everything the project needs. Fast if nothing has changed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# The first Python that can run $1, of the versions with oneflow 0.9.0 wheels, best first.
find_python() {
  local version candidate
  for version in 3.10 3.9 3.8; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python python3; do
      if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] &&
        "$candidate" -c "$1" 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
  done
  return 1
}

# uv makes environments and fetches Pythons: the user's, or one that any Python installs in
# .cache/uv.
find_uv() {
  local folder=$root/.cache/uv
  if command -v uv; then
    return
  fi
  if ! "$folder/bin/uv" --version >/dev/null 2>&1; then
    echo "setup: installing uv into .cache/uv" >&2
    if python3 -c 'import venv, ensurepip' 2>/dev/null; then
      python3 -m venv --clear "$folder" && "$folder/bin/python" -m pip install -q uv >&2
    elif python3 -c 'import pip' 2>/dev/null; then
      python3 -m pip install -q --upgrade --target "$folder" uv >&2
    else
      say 'no python3 with venv or pip to install uv'
    fi || return 1
  fi
  echo "$folder/bin/uv"
}

say() {
  printf '%s\n' "$@" >&2
  return 1
}

make_environment() {
  local python uv
  if python=$(find_python 'import venv, ensurepip'); then
    echo "setup: .venv by $("$python" --version)"
    "$python" -m venv --clear .venv
    return
  fi
  if python=$(find_python pass); then # Debian has venv in another package
    echo "setup: $("$python" --version) has no venv, uv makes .venv"
    uv=$(find_uv) || say 'error: no uv, for the reason above. Install it, or venv (Debian and Ubuntu:' \
      'apt install python3-venv). Then run this again.'
  else
    echo 'setup: no Python 3.10, 3.9 or 3.8 on PATH or under pyenv, uv fetches one'
    uv=$(find_uv) || say 'error: no uv, for the reason above. Install Python 3.10 (pyenv install 3.10), or uv,' \
      'or venv (Debian and Ubuntu: apt install python3-venv). Then run this again.'
    python=3.10
    "$uv" python install --no-progress 3.10 || say 'error: uv could not fetch Python 3.10, for the reason above.' \
      'It comes from GitHub, or from the mirror that UV_PYTHON_INSTALL_MIRROR names. Or install it' \
      'another way (pyenv install 3.10). Then run this again.'
  fi
  "$uv" venv -q --clear --seed --python "$python" .venv
}

stamp=.venv/.installed
# A checkout that was moved is installed again.
wanted=$({ echo "$root"; cat requirements.txt pyproject.toml setup.py tools/setup.sh; } | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "error: oneflow 0.9.0 has wheels for Linux on x86-64 only" >&2
    exit 1
  fi
  .venv/bin/python -c 'import sys, pip; assert (3, 8) <= sys.version_info < (3, 11)' 2>/dev/null ||
    make_environment
  echo 'setup: installing into .venv (2 GB to download once)'
  pip=(.venv/bin/python -m pip --disable-pip-version-check install -q)
  "${pip[@]}" -c requirements.txt setuptools wheel pybind11
  # The list is complete; LiBai's own requirements pin linters.
  "${pip[@]}" --no-build-isolation --no-deps -r requirements.txt
  "${pip[@]}" --no-build-isolation --no-deps -e .
  # Use this relative path first: that of pip is wrong once the checkout is moved.
  (cd .venv/lib/python3*/site-packages && echo ../../../.. >checkout.pth)
  echo "$wanted" >"$stamp"
fi
