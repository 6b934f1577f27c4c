# Two commands do all the set-up on a fresh machine (Python 3.11 and make):
#   make demo    build the embedded checkpoint and write a story with it
#   make test    every correctness test
.PHONY: demo test test-slow lint bench bench-quick bench-sizes bench-precisions bench-speculation emulate trials clean

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

PROMPT ?= Once upon a time there was a little mouse who

demo: models/demo-int8/SHA256SUMS
	@printf "\n%s" "$(PROMPT)"
	@$(BIN)/gpt2-edge generate "$(PROMPT)" --model models/demo-int8 --max-new-tokens 200 --temperature 0.7 --top-p 0.9 --seed 7

models/demo-int8/SHA256SUMS: .venv/export-light $(wildcard export/*.py models/demo/*)
	$(BIN)/python export/build.py models/demo --output models/demo-int8 --no-reference --force

test: .venv/export
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/export
	$(BIN)/python -m pytest -m slow

bench: .venv/export
	$(BIN)/python -m tests.benchmarks.bench --plot docs/bench.png

bench-quick: .venv/export
	$(BIN)/python -m tests.benchmarks.quick

bench-sizes: .venv/export
	$(BIN)/python -m tests.benchmarks.sizes

bench-precisions: .venv/export
	$(BIN)/python -m tests.benchmarks.precisions

bench-speculation: .venv/export
	$(BIN)/python -m tests.benchmarks.speculation

# the demo on other processors: wants Debian on x86-64 with qemu-user-static
emulate: .venv/export
	$(BIN)/python -m tests.emulation

trials: .venv/export
	$(BIN)/python -m tests.trials.damage
	$(BIN)/python -m tests.trials.memory
	$(BIN)/python -m tests.trials.endurance

lint: .venv/export
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# stamps: an extra is installed again when pyproject.toml changes
.venv/export-light: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[export-light]'
	@$(BIN)/python -c "open('$@', 'w').close()"

.venv/export: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[export,dev]'
	@$(BIN)/python -c "open('$@', 'w').close()"

clean:
	$(PYTHON) -c "import shutil; shutil.rmtree('.venv', ignore_errors=True)"
