#!/usr/bin/env bash
# Known vulnerabilities of what the locks pin: scripts/audit.sh [LOCK...]      (make audit)
# pip-audit asks PyPI's database, in an environment of its own (.venv-audit). Exit 1: there are some, listed.
# Where the database can't be reached, or does not answer in time, one line says so and the exit code is 0.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${AUDIT_SECONDS:-240} # for all locks together
program=${PIP_AUDIT:-.venv-audit/bin/pip-audit}
locks=("$@")
((${#locks[@]})) || locks=(requirements/*.lock)
deadline=$((SECONDS + seconds))
report=$(mktemp) errors=$(mktemp) pins=$(mktemp)
trap 'rm -f "$report" "$errors" "$pins"' EXIT
found=0

left_out() {
  echo "audit left out: $1"
  exit "$found"
}

if [ ! -x "$program" ] && [ -z "${PIP_AUDIT:-}" ]; then
  "${PYTHON:-python3}" -m venv --clear .venv-audit
  timeout "$seconds" .venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit 2>"$errors" ||
    left_out "pip-audit can't be installed ($(tail -n 1 "$errors" | cut -c1-200))"
fi

for lock in "${locks[@]}"; do
  # Names and versions alone: the database knows nothing of hashes, other indexes and local versions (+cpu).
  sed -nE 's/^([A-Za-z0-9._-]+==[^ ;+\\]+).*/\1/p' "$lock" | sort -u >"$pins"
  code=0
  timeout "$((deadline > SECONDS ? deadline - SECONDS : 1))" "$program" --requirement "$pins" --no-deps --disable-pip \
    --progress-spinner off --timeout 10 >"$report" 2>"$errors" </dev/null || code=$?
  if ((code == 0)); then
    echo "audit: no known vulnerability in $(wc -l <"$pins") packages of $lock"
  elif ((code == 124)); then
    left_out "no answer from the database in $seconds s"
  elif grep -q '^Found [0-9]* known vulnerabilit' "$errors"; then
    cat "$report"
    found=1
  elif grep -qE 'ConnectionError|ProxyError|SSLError|Timeout|Max retries|ServiceError|HTTPError' "$errors"; then
    left_out "the database can't be reached ($(tail -n 1 "$errors" | cut -c1-200))"
  else
    cat "$errors" >&2
    exit 2
  fi
done
exit "$found"
