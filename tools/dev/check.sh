#!/usr/bin/env bash
# Look at the source without running it: one line a check, with its findings where it has some.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
failed=0

# check WHAT COMMAND...
check() {
  local what=$1 findings
  shift
  if findings=$("$@" 2>&1); then
    echo "check: $what"
  else
    printf '%s\n' "$findings" "check: $what: FAILED ($*)" >&2
    failed=1
  fi
}

cpp=$(find libai_ext/csrc tests/fakecuda tools/dev -name '*.cpp' -o -name '*.h')
# pytest cannot collect two files of one name together.
twice=$(find tests -name 'test_*.py' -printf '%f\n' | sort | uniq -d)
check 'no two test files of one name' test -z "$twice"
check 'mistakes in Python' .venv/bin/ruff check .
check 'format of Python' .venv/bin/ruff format --check .
check 'format of C++' .venv/bin/clang-format --dry-run --Werror $cpp
check 'spelling' .venv/bin/codespell
check 'types' .venv/bin/mypy
exit $failed
