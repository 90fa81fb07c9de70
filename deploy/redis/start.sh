#!/bin/bash
# Redis as a container of the application: settings from the environment, its lines as JSON on stdout.
# It stays process 1, so that SIGTERM reaches it and nothing is lost.
set -euo pipefail
settings=$(printf '%s\naclfile %s\n' "$REDIS_SETTINGS" "$ACL_FILE")
exec redis-server - < <(printf '%s\n' "$settings") > >(exec sed --unbuffered --regexp-extended --file "$LOG_SCRIPT") 2>&1
