# make            what can be made
# DEVICE=cuda     install the CUDA locks instead of the CPU ones
DEVICE ?= cpu
VENV ?= .venv
PYTHON_BIN := $(VENV)/bin/python
PYTEST_ARGS ?=
BENCH ?=
FAULTS ?= tests/faults
FUZZ ?=
GPU_TEST ?=

# Nothing this project starts reports home.
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench-test gpu-test extras-test mlflow-test verifiers-test faults compose-test slurm-test real-job real-job-test fuzz check audit measures docs bench bench-compare lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## make the virtual environment from the locks (skipped when up to date)
	@scripts/setup.sh $(DEVICE)

demo: setup ## the whole pipeline on the CPU, real components, two generators; ends with a page of results
	@$(VENV)/bin/vcppo demo

test: setup ## all tests but faults, compose and benchmarks: unit, conformance, integration, fuzz (PYTEST_ARGS="-m unit" for the quick ones)
	@$(PYTHON_BIN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) --ignore=tests/integration/test_benchmarks.py tests/integration tests/unit tests/conformance tests/fuzz

bench-test: setup ## every benchmark once, small: does it run, is it right?
	@$(PYTHON_BIN) -m pytest -n 3 --maxschedchunk 1 $(PYTEST_ARGS) tests/integration/test_benchmarks.py

extras-test: setup ## tests of the optional extras but mlflow, their packages in .cache/extras (they take a C compiler)
	@$(PYTHON_BIN) -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target .cache/extras -r requirements/extras.lock
	@PYTHONPATH=.cache/extras PATH="$(CURDIR)/.cache/extras/bin:$$PATH" $(PYTHON_BIN) -m pytest $(PYTEST_ARGS) \
		tests/unit/common/tasks/test_reasoning_gym.py tests/unit/common/trackers/test_real_trackers.py tests/unit/learner/profiling \
		tests/unit/learner/simulation tests/unit/deploy/simulation

mlflow-test: setup ## metrics to a real MLflow server, its packages in .cache/mlflow: two minutes, so CI leaves it out
	@$(PYTHON_BIN) -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target .cache/mlflow -r requirements/mlflow.lock
	@PYTHONPATH=.cache/mlflow $(PYTHON_BIN) -m pytest $(PYTEST_ARGS) tests/unit/common/trackers/test_real_trackers.py -k mlflow

verifiers-test: setup ## environments of the package verifiers, in virtual environments of its own in .cache (1.3 GiB, five minutes)
	@for name in verifiers verifiers_v1; do $(PYTHON_BIN) -m venv .cache/$$name && .cache/$$name/bin/python -m pip install \
		--disable-pip-version-check --quiet --no-deps -r requirements/$$name.lock || exit; done
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS) tests/unit/generator/turns/test_verifiers_agents.py tests/integration/test_verifiers_run.py

faults: setup ## kill, freeze and cut off real processes, minutes of chaos included
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS) $(FAULTS)

compose-test: setup ## the compose application on a docker engine: built, scaled, hurt, finished (skipped without one)
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS) tests/compose

slurm-test: setup ## a run on a real Slurm of several nodes on this machine: joined, hurt, preempted (skipped without slurmd)
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS) tests/slurm

real-job: ## a pretrained model and data for real-job-test, in .cache/real-job (needs ../shared)
	@if [ -x ../shared/real-job/make ]; then ../shared/real-job/make .cache/real-job; \
	else echo "real-job left out: no ../shared/real-job/make; REAL_JOB=FOLDER names one that is made"; fi

real-job-test: setup ## the way of docs/first_run.md, short, with a pretrained model (skipped without one)
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS) tests/real_job

fuzz: setup ## the hostile hour: ten million inputs at all that reads; FUZZ="wire --runs 1000000 --seed 0" for one
	@$(PYTHON_BIN) -m tests.fuzz $(FUZZ)

check: setup ## formatting, lint, types, and that every test module imports
	@$(PYTHON_BIN) -m ruff format --check --quiet .
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m mypy
	@collected=$$($(PYTHON_BIN) -m pytest --collect-only -q tests 2>&1) || { echo "$$collected" | tail -n 40; exit 1; }

audit: ## known vulnerabilities of what the locks pin, by pip-audit; one line where its database can't be reached
	@PYTHON=$(or $(PYTHON),$(firstword $(wildcard $(PYTHON_BIN)) python3)) scripts/audit.sh

measures: setup ## how the code base is built, in figures: rooms, circles, long functions, docstrings, words a sentence
	@$(PYTHON_BIN) scripts/measures.py

docs: .venv-docs/made ## the documentation as a site, in site/; a dead link or an undocumented public name ends it
	@.venv-docs/bin/mkdocs build --clean

.venv-docs/made: pyproject.toml # an environment of its own: nobody else needs these packages
	@$(or $(PYTHON),$(firstword $(wildcard $(PYTHON_BIN)) python3)) -m venv --clear .venv-docs
	@.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| xargs .venv-docs/bin/pip install --quiet --disable-pip-version-check
	@touch $@

bench: setup ## measure against physical limits and the peers' ways; BENCH="gae wire" for some, BENCH=--quick for a trial
	@$(PYTHON_BIN) -m benchmarks $(BENCH)

bench-compare: setup ## what moved between two versions of docs/performance.json, with noise: A=commit B=commit (or files; B: the one that lies here)
	@test -n "$(A)" || { echo 'bench-compare: from which version? make bench-compare A=HEAD~10 B=HEAD; A and B are commits or files' >&2; exit 2; }
	@$(PYTHON_BIN) -m benchmarks compare $(A) $(B)

gpu-test: DEVICE = cuda
gpu-test: setup ## on a machine with a GPU: is what it computes right, how fast? Writes a page to docs/records/gpu (GPU_TEST="--part a", a check's name)
	@$(PYTHON_BIN) -m benchmarks.gpu $(GPU_TEST)

lock: setup ## resolve the lock files again (needs uv on PATH)
	@scripts/lock.sh

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) $(VENV).lock .venv-docs .venv-audit site .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
