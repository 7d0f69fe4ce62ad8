# Each target sets up everything it needs in .venv, so that both work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[s3,talkers,test]"
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
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build *.egg-info
