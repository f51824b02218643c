# `make` alone lists what there is. Variables are given as `make reproduce ONLY=03 JOBS=2`, or in the environment.
PYTHON ?= python3
VENV ?= .venv
# full writes results/; quick (minutes) writes build/quick; extended (hours) writes results/extended
PROFILE ?= full
ONLY ?=
SEEDS ?=
DEVICE ?=
JOBS ?=
ENGINE ?=

# A file of tests stays in one process: its fixtures are made once.
PARALLEL = -n $(or $(JOBS),2) --dist loadgroup --no-loadscope-reorder
COMPUTING := tests/rules tests/layers tests/conversion tests/training $(wildcard tests/test_optim.py) tests/test_metrics.py \
  tests/test_planted_bugs.py tests/data/test_inputs_property.py tests/study/experiments tests/study/questions \
  tests/study/evidence/test_stats.py
# A path with spaces is quoted for the shell, and escaped where make would read several names.
empty :=
FOLDER := $(if $(filter ~/%,$(firstword $(VENV))),$(HOME)$(subst ~/,/,$(VENV)),$(VENV))
PY := "$(FOLDER)/bin/python"
STAMP := $(subst $(empty) $(empty),\ ,$(FOLDER))/.decorlib-stamp
INTEROP := $(subst $(empty) $(empty),\ ,$(FOLDER))/.decorlib-interop-stamp
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# After Ctrl-C the program has said what is kept; make ends by the same signal, and adds no line "Error 130".
ENDED = { status=$$?; test $$status -ne 130 || { kill -INT $$PPID; exit 0; }; exit $$status; }
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce report lab refresh test test-shapes test-slow test-interop test-notebooks wheel before soak lint imports format lock clean

# Each on its own line: `export A=0 B=1` would make A the text "0 B=1".
export PYTHONHASHSEED = 0
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# A kernel `python3` found there would run instead of this environment's.
unexport JUPYTER_PATH
unexport PYTHONPATH
# Set by reproduce.py for the notebooks it runs; inherited from a shell they would make tests write results.
unexport DECORLIB_RESULTS
unexport DECORLIB_RECORDS
unexport DECORLIB_NOTEBOOK

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  variables: ONLY=03 PROFILE=quick|full|extended SEEDS=10 DEVICE=cuda JOBS=2 ENGINE=tcp://host:8786 PYTHON=python3.12"

setup: $(STAMP)  ## create .venv with the locked versions (does nothing the second time)

$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "decorlib needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true)."; \
	  echo "Name another one: make setup PYTHON=python3.12"; exit 1; } >&2
	@test -x $(PY) || "$(PYTHON)" -m venv "$(FOLDER)" || true
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --default-pip >/dev/null 2>&1 || { \
	  echo "There is no pip in $(FOLDER), and '$(PYTHON)' cannot put it there. On Debian and Ubuntu: apt install python3-venv."; \
	  echo "Or remove that folder and name another Python: make setup PYTHON=python3.12"; exit 1; } >&2
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch "$@"

reproduce: $(STAMP)  ## run what has changed, write results/, compare with the committed records
	@$(PY) -m decorlib.study.report.reproduce --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(DEVICE),--device $(DEVICE)) $(if $(JOBS),--jobs $(JOBS)) $(if $(ENGINE),--engine $(ENGINE)) || $(ENDED)

report: $(STAMP)  ## rebuild results/report from the records, without training
	$(PY) -m decorlib.study.report.build --profile $(PROFILE)

# Its settings are in .jupyter/labconfig: no question about news, no call to the network. It multiplies as reproduce does,
# so that what that has run is found in the cache.
lab: $(STAMP)  ## open the notebooks in JupyterLab
	LD_PRELOAD="$$($(PY) -m decorlib._io.products)" JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	  $(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

refresh: $(STAMP)  ## run the notebooks at their quick values and store the outputs in notebooks/
	$(PY) -m decorlib.study.report.reproduce --refresh-sources $(if $(ONLY),--only $(ONLY))

test: $(STAMP)  ## unit tests, then every notebook: its checked cells must print what is stored
	$(PY) -m pytest $(PARALLEL) tests
	@$(MAKE) --no-print-directory test-notebooks

# Checking every call takes as long again. CI does this under the instructions of older processors (see .ci/run), since
# these are the tests in which the sign of a rounding error could decide. An int is a float, as for mypy and pyright.
CHECKED := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
test-shapes: $(STAMP)  ## the tests that compute, once more, with the shapes and types of every call checked
	$(PY) -m pytest $(PARALLEL) --jaxtyping-packages='decorlib,$(CHECKED)' $(COMPUTING)

test-notebooks: $(STAMP)  ## only the notebooks
	@if compgen -G 'notebooks/*.ipynb' >/dev/null; then \
	  DECORLIB_PROGRESS=off $(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 300 \
	    --nbval-sanitize-with tests/nbval.cfg -p no:cacheprovider notebooks; \
	else echo "no notebooks yet"; fi

# axe-core checks contrast and names; without npm that one test is skipped and says so.
test-slow: $(STAMP)  ## the slow tests: the report in a headless Chromium, long statistics
	@command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix build/npm axe-core@4.14.1 || echo "no axe-core"
	$(PY) -m pytest -m slow tests

# The pins of requirements.lock hold here too, so nothing that is installed changes; --no-deps leaves out nothing, since
# the two files together list everything.
$(INTEROP): requirements-interop.lock $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-interop.lock
	@touch "$@"

test-interop: $(INTEROP)  ## beside peft, transformers, timm, accelerate, lightning, torchao and others (installs them)
	HF_HUB_OFFLINE=1 $(PY) -m pytest tests/interop

# Downloads torch once more, several GB on Linux; TORCH=2.14.1 names a version.
wheel: $(STAMP)  ## build the wheel and run README's code and the examples for trainers from it, in a new environment
	$(PY) tests/helpers/from_wheel.py $(if $(TORCH),--torch $(TORCH))

# Minutes; timings, so nothing else should run beside it. Needs the repository's history.
before: $(STAMP)  ## a training step of COMMIT=46d481b beside today's, into results/benchmarks/
	$(PY) tests/helpers/before.py $(or $(COMMIT),46d481b)

# In a clone of its own: an edit of the library in the middle ends it.
soak: $(STAMP)  ## sweeps under random faults for MINUTES=30, memory watched
	$(PY) tests/soak.py --minutes $(or $(MINUTES),30)

lint: $(STAMP)  ## ruff, formatting, and no volatile metadata in the notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@if compgen -G 'notebooks/*.ipynb' >/dev/null; then $(PY) -m pytest -q tests/test_notebooks.py; fi

imports: $(STAMP)  ## the rooms of decorlib and the imports between them
	@$(PY) tests/helpers/rooms.py .

format: $(STAMP)  ## let ruff mend layout and imports
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# uv writes hashes for all platforms in seconds; pip-compile would download every CUDA wheel. It is only needed
# here, so it lives in build/. torch and torchvision are released in pairs: change both constraints together.
lock: build/uv/bin/uv  ## resolve pyproject.toml again into requirements.lock and requirements-interop.lock
	printf '%s\n' torch==2.14.1 torchvision==0.29.1 > build/constraints.txt
	build/uv/bin/uv pip compile pyproject.toml --extra study --extra cluster --extra dev --universal \
	  --python-version 3.11 --generate-hashes --no-header -q -c build/constraints.txt -o requirements.lock
	build/uv/bin/uv pip compile pyproject.toml --extra interop --universal --python-version 3.11 --generate-hashes \
	  --no-header -q -c requirements.lock -o requirements-interop.lock \
	  $$(sed -nE 's/^([A-Za-z0-9._-]+)==.*/--no-emit-package \1/p' requirements.lock | sort -u)
	sed -i.bak '/^# /d' requirements-interop.lock && rm requirements-interop.lock.bak  # the list of what is left out

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv

clean:  ## remove what was built; keeps .venv, results/ and the cache of training runs
	rm -rf build .pytest_cache .ruff_cache .hypothesis jupyter_execute
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
