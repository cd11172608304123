#!/usr/bin/env bash
# Launch a training program on N processes of this machine.
#   bash tools/train.sh FILE CONFIG N [options] [key=value ...]
# RESTARTS=N starts again from the last checkpoint, up to N times, after a crash.
# Several machines: the same call on each, with NODE (how many), NODE_RANK (0 ...), ADDR (address
# of machine 0) and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
file=$1 config=$2 processes=$3
shift 3
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m libai_ext.launch \
  --nproc-per-node "$processes" --nnodes "${NODE:-1}" --node-rank "${NODE_RANK:-0}" \
  --master-addr "${ADDR:-127.0.0.1}" ${PORT:+--master-port "$PORT"} \
  --restarts "${RESTARTS:-0}" \
  "$file" --config-file "$config" "$@"
