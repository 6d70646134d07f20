# Every target sets up what it needs. `make demo` and `make test` are all a newcomer has to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/vit_mlp

.PHONY: demo test lint docs slow-test gpu-test clean
.DEFAULT_GOAL := test

demo: $(STAMP) graphics
	$(BIN)/build-and-train recipes/vit_mlp.yaml --output $(RUN) --resume
	$(BIN)/policysmith evaluate $(RUN)

test: lint graphics
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n 2 -W default tests/kernels  # the Triton programs, on a CPU

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=.namespace $(BIN)/lint-imports
	$(BIN)/mypy

docs: $(STAMP)
	PYTHONPATH=.namespace NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

slow-test: $(STAMP) graphics
	$(BIN)/python -m pytest -q -m slow

gpu-test: $(STAMP)
	$(BIN)/python -m pytest -q -m gpu -W default  # other versions of torch warn of other things

$(STAMP): pyproject.toml tools/setup.sh
	bash tools/setup.sh $(PYTHON) $(VENV)
	touch $@

graphics: $(STAMP)
	@bash tools/graphics.sh $(BIN)/python

clean:
	rm -rf $(VENV) runs build *.egg-info
