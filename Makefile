# `make demo` and `make test` do all of their set-up, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
MINUTES ?= 60
DOCS = README.md $(wildcard docs/*.md)

.DELETE_ON_ERROR:
.PHONY: demo test fuzz mutants lint docs train clean

demo: $(VENV)/.installed  ## Install, write the demo database, search it, and serve it
	@echo "Making the demo …"
	@$(BIN)/datasette vision demo demo.db

test: $(VENV)/.installed-test  ## Install, and run the tests
	@echo "Running the tests …"
	@$(BIN)/python -m pytest $(ARGS)

mutants: $(VENV)/.installed-test  ## Change the package at random, and see whether the tests notice
	@nice -n 15 $(BIN)/python tests/mutants.py $(ARGS)

lint: $(VENV)/.installed-test  ## Check style, types and that the README is fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cog --check -p "import sys; sys.path.insert(0, '.')" $(DOCS)

fuzz: $(VENV)/.installed-test  ## Try generated inputs on every parser for an hour, or MINUTES=5, and count them
	@$(BIN)/python -m tests.fuzz $(MINUTES) $(ARGS)

docs: $(VENV)/.installed-test  ## Write the generated parts of the README anew
	$(BIN)/cog -r -p "import sys; sys.path.insert(0, '.')" $(DOCS)

train:  ## Train the bundled model anew (torch on the CPU; under two hours on two cores)
	@echo "Making $(VENV)-train and installing what training needs …"
	@$(PYTHON) -m venv $(VENV)-train
	@$(VENV)-train/bin/python -m pip install --quiet --disable-pip-version-check -r training/requirements.txt
	$(VENV)-train/bin/python training/run.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(VENV)-train demo.db demo-metadata.json

$(VENV)/bin/python:
	@echo "Making a virtual environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(VENV)/bin/python
	@echo "Installing datasette-vision …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: setup.py pyproject.toml | $(VENV)/bin/python
	@echo "Installing datasette-vision and what its tests need …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.installed
