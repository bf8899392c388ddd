# Every command sets up .venv by itself, from nothing but Python 3.11+ and pip (or uv, if there is one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := constraints/py$(if $(filter 3.11,$(VERSION)),311,313).txt
CORE := $(VENV)/.core-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)

# A machine may be set to keep no bytecode (images of containers often are); then every process would
# compile what it imports anew, some two seconds.
export PYTHONDONTWRITEBYTECODE :=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Another interpreter: make test PYTHON=python3.13.  More arguments: make test ARGS='-k loss'."

train: $(CORE) ## Train a small transformer on the Python library's own text, in minutes on a CPU
	$(BIN)/jaxlm train configs/tiny_stdlib.gin $(ARGS)

# Two workers: compiling for a test keeps one core busy.  By file, so that they share what it compiled;
# in the order of the folders, where tests/e2e with its long files comes first and no core idles at the end.
test: $(DEV) ## Run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV) ## Check style, types, layers and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

bench: $(CORE) ## Measure the training step; what else there is: make bench ARGS=--help
	$(BIN)/jaxlm bench $(or $(ARGS),step configs/tiny_decoder.gin)

constraints: ## Write constraints/ anew from the newest releases (needs uv)
	for v in 311 313; do uv pip compile pyproject.toml --all-extras --upgrade --strip-extras \
	  --python-version 3.$${v#3} --no-annotate --no-header -q -o constraints/py$$v.txt; done

clean: ## Remove .venv and every cache; data/ and runs/ stay
	rm -rf $(VENV) build dist .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(CORE): pyproject.toml $(CONSTRAINTS)
	$(call install,.)
	@touch $@

$(DEV): pyproject.toml $(CONSTRAINTS)
	$(call install,.[dev])
	@touch $(CORE) $@

# The venv starts without pip, since some systems split off the module that would put it there,
# and gets it with the rest.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "jaxlm needs Python 3.11 or newer, and $(PYTHON) is $(or $(VERSION),not there);" \
	    "name another: make $(or $(MAKECMDGOALS),help) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python$(VERSION) || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@echo "Installing jaxlm and what it needs into $(VENV): about a minute, once"
	@if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python \
	  -c $(CONSTRAINTS) pip -e '$(1)'; \
	else $(PYTHON) -m pip --python $(BIN)/python install -q --no-compile --prefer-binary --disable-pip-version-check \
	  -c $(CONSTRAINTS) pip -e '$(1)'; fi
endef

.PHONY: help train test lint bench constraints clean
