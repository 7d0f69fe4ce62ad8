# Each target sets up everything it needs in .venv, so that all work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint docs clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	rm -rf cavmae.egg-info  # of an earlier version, whose requirements would be read first
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs,s3,talkers,test]"
	touch $(READY)

# The main job from raw video to result, on a corpus it makes itself; VIDEO=path is taken apart, too.
# Run again it goes on where it stopped; CLEAN=1 begins anew.
demo: $(READY)
	$(BIN)/cavmae demo --out demo $(if $(VIDEO),--video "$(VIDEO)") $(if $(CLEAN),--clean)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder \
		--durations=25 --durations-min=4

# The documentation as pages in build/docs; a broken link or reference is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) build *.egg-info
