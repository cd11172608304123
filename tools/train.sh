#!/usr/bin/env bash
# Launch a training program on N processes of this machine.
#   bash tools/train.sh [--restarts N] FILE CONFIG N [options] [key=value ...]
# With --restarts N it restarts from the last checkpoint after a crash, up to N times.
# Several machines: one call in a Slurm allocation; one call with HOSTFILE=FILE, a host a line (by
# ssh, same directory); or the same call on each, with NODE (how many), NODE_RANK (0 ...), ADDR
# (address of machine 0), PORT and JOB_SECRET (any text that only you know) set.
set -euo pipefail
restarts=0
if [ "${1:-}" = --restarts ]; then
  restarts=${2:-}
  shift 2 || set --
fi
if [ $# -lt 3 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
file=$1 config=$2 processes=$3
shift 3
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
if ! "$python" - oneflow libai libai_ext 2>/dev/null <<<'
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))'; then
  echo "error: OneFlow, LiBai or this project is not installed: run bash $root/tools/setup.sh" >&2
  exit 2
fi
exec "$python" -m libai_ext.launch \
  --nproc-per-node "$processes" --restarts "$restarts" \
  "$file" --config-file "$config" "$@"
