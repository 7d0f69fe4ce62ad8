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

# The main job from raw video to result. So far there is its first half; what is to come is said.
demo: $(READY)
	@$(BIN)/cavmae --help
	@echo
	@echo "To come: render talkers, shard and check them, pretrain, fine-tune, separate, report."
	@echo "Until then: cavmae shard YOUR_VIDEOS --out clips && cavmae check clips (see README.md)."

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build *.egg-info
