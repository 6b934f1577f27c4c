# Two commands do all the set-up on a fresh machine (Python 3.11 and make):
#   make demo    build the embedded checkpoint and write a story with it
#   make test    every correctness test
.PHONY: demo test test-slow test-ranges lint bench bench-quick bench-quality real bench-sizes bench-growth bench-precisions bench-speculation emulate emulate-instructions trials docs dist lock licences clean

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

PROMPT ?= Once upon a time there was a little mouse who

demo: models/demo-int8/SHA256SUMS
	@printf "\n%s" "$(PROMPT)"
	@$(BIN)/gpt2-edge generate "$(PROMPT)" --model models/demo-int8 --max-new-tokens 200 --temperature 0.7 --top-p 0.9 --repetition-penalty 1.1 --seed 7

models/demo-int8/SHA256SUMS: .venv/export-light $(wildcard export/*.py export/*/*.py models/demo/*)
	$(BIN)/python export/build.py models/demo --output models/demo-int8 --no-reference --force

test: .venv/dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/dev
	$(BIN)/python -m pytest -m "slow and not ranges"

# the runtime with the oldest and the newest versions of what it requires
test-ranges: .venv/dev
	$(BIN)/python -m pytest -m ranges

# two to three hours the first time, one to two later
bench: .venv/dev
	$(BIN)/python -m tests.benchmarks.bench --plot docs/bench.png --docs

bench-quick: .venv/dev
	$(BIN)/python -m tests.benchmarks.quick

bench-quality: .venv/dev
	$(BIN)/python -m tests.benchmarks.quality

# every precision of a checkpoint beside published figures; MODEL: a hub id or a folder
MODEL ?= gpt2
real: .venv/dev
	$(BIN)/python -m tests.real $(MODEL)

bench-sizes: .venv/dev
	$(BIN)/python -m tests.benchmarks.sizes

# about an hour: three rounds of five sizes
bench-growth: .venv/dev
	$(BIN)/python -m tests.benchmarks.growth --pictures docs --docs

bench-precisions: .venv/dev
	$(BIN)/python -m tests.benchmarks.precisions

bench-speculation: .venv/dev
	$(BIN)/python -m tests.benchmarks.speculation

# the demo on other processors: wants Debian on x86-64 with qemu-user-static
emulate: .venv/dev
	$(BIN)/python -m tests.emulation

# what GPT-2 executes a token on a Raspberry Pi's processors; wants a C compiler, too
emulate-instructions: .venv/dev
	$(BIN)/python -m tests.emulation.instructions --docs

# half an hour or more; ends with a table
trials: .venv/dev
	$(BIN)/python -m tests.trials.damage
	$(BIN)/python -m tests.trials.fuzz
	$(BIN)/python -m tests.trials.lengths
	$(BIN)/python -m tests.trials.server
	$(BIN)/python -m tests.trials.faults
	$(BIN)/python -m tests.trials.onnx_reading
	$(BIN)/python -m tests.trials.tokenizer_files
	$(BIN)/python -m tests.trials.builds
	$(BIN)/python -m tests.trials.endurance
	$(BIN)/python -m tests.trials.memory
	$(BIN)/python -m tests.trials.table

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Ends make where PYTHON is too old. Prints --clear where .venv is missing or half made: an earlier try ended in the
# middle, with another PYTHON, say.
define CHOOSE
import subprocess, sys
if sys.version_info < (3, 11):
    version = "%d.%d" % sys.version_info[:2]
    sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %s: make $(MAKECMDGOALS) PYTHON=python3.12, say" % version)
ask = ["$(BIN)/python", "-I", "-c", "import importlib.metadata as m; m.version('gpt2-edge')"]
try:
    complete = subprocess.call(ask, stderr=subprocess.DEVNULL) == 0
except OSError:
    complete = False
print("" if complete else "--clear")
endef
export CHOOSE

# an environment, exactly as locked; its stamp is older than what it must be installed again for
.venv/%: locks/%.txt locks/torch.txt pyproject.toml
	@how=$$($(PYTHON) -c "$$CHOOSE") && $(PYTHON) -m venv $$how .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $<
	$(if $(findstring light,$@),,$(BIN)/python -m pip install --quiet -r locks/torch.txt)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c "open('$@', 'w').close()"

# what each environment is made of; keeps versions that are locked already, and takes the newest where there is no lock
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
  --custom-compile-command "make lock" --group build pyproject.toml

lock: .venv/dev
	$(COMPILE) --extra export --extra dev runtime/server/pyproject.toml --output-file locks/dev.txt
	$(COMPILE) --extra export --constraint locks/dev.txt --output-file locks/export.txt
	$(COMPILE) --extra export-light --constraint locks/dev.txt --output-file locks/export-light.txt

# the site of docs/ in build/site
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# what an index would get, in dist/: wheels and source distributions of the runtime, the server and the demo
dist: .venv/dev models/demo-int8/SHA256SUMS
	$(BIN)/python -c "import shutil; shutil.rmtree('dist', ignore_errors=True)"
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --outdir dist runtime/server
	$(BIN)/python -m build --no-isolation --outdir dist packages/demo
	$(BIN)/python -m twine check --strict dist/*

licences: .venv/dev
	$(BIN)/python -m tests.licences

clean:
	$(PYTHON) -c "import shutil; shutil.rmtree('.venv', ignore_errors=True)"
