# Needs Python 3.11 or newer; everything else goes into .venv, made on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
INSTALLED_DOCS := .venv/installed_docs
SITE := docs/_build/html

.PHONY: run test lint docs notebooks

run: $(INSTALLED)
	$(BIN)/rlhf-jax experiment

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, in docs/_build/html, lessons executed; `make docs EXECUTE=off` does not execute them.
docs: $(INSTALLED_DOCS)
	rm -rf $(SITE)/_modules
	RLHF_JAX_DOCS_EXECUTE=$(EXECUTE) $(BIN)/python -m sphinx -W --keep-going -q -j 2 -d docs/_build/doctrees docs $(SITE)
	$(BIN)/python scripts/check_site.py $(SITE)

notebooks: $(INSTALLED)
	$(BIN)/python scripts/make_notebooks.py

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
