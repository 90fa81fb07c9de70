#!/usr/bin/env bash
# Resolve the lock files again: scripts/lock.sh [uv pip compile options, e.g. --upgrade-package NAME or --find-links DIR]
# Needs uv. Kept pins stay unless an option says otherwise. Every line of a lock is tested as a whole: run make test after.
set -euo pipefail
cd "$(dirname "$0")/../requirements"

header() { # the comment a lock begins with: everything up to its first pin
  sed '/^[^#]/,$d' "$1"
}

lock() { # name, options...
  local name=$1 top
  shift
  top=$(header "$name.lock")
  uv pip compile "$name.in" --output-file "$name.lock" --quiet --no-header --no-annotate --excludes excluded.txt \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
  printf '%s\n%s\n' "$top" "$(cat "$name.lock")" >"$name.lock"
}

lock cpu --torch-backend cpu --no-emit-package torch "$@"
lock cuda "$@"
lock dev -c cpu.lock "$@"
