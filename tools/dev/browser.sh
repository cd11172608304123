#!/usr/bin/env bash
# Print the path of Chromium, for the test that opens a page; install Debian's package if there is
# none (needs root). Nothing else uses it.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name"; then
    exit
  fi
done
(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) >&2
command -v chromium
