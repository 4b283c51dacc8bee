# Every target makes .venv and installs what it needs; only Python 3.10 or newer must be installed before.
PYTHON ?= python3
DATA ?= sample
BIN := .venv/bin
SAMPLE := --dropout 0.2 --learning-rate 2e-3 --epochs 5  # small vocabulary, so less dropout
FAST := tests/kernels tests/grucore tests/pytorch tests/support --ignore tests/grucore/convert
THREADS := $(shell nproc 2>/dev/null || echo 2)
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of programs; each would compile PyTorch's sources again

.PHONY: help examples imdb demo docs docs-serve test test-fast test-gpu test-ptx fuzz sanitize coverage bench check clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# One stamp for each extra: `pip` runs again only when the requirements change.
.venv/installed-%: pyproject.toml setup.py constraints.txt $(wildcard kernels/native/*.cpp kernels/native/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	touch $@

examples: OUT := runs/forecast-$(shell date +%Y%m%d-%H%M%S).png
examples: .venv/installed-examples  ## the three one-file examples, a minute or two each; OUT=new file for the forecast
	mkdir -p runs
	$(BIN)/python examples/policy.py
	$(BIN)/python examples/forecasting.py --output $(OUT)
	$(BIN)/python examples/language_model.py

imdb: .venv/installed-imdb  ## train the IMDB example; DATA=sample (synthetic, no network), hub, or a folder
	$(BIN)/python examples/imdb/train.py --preset book-masked --data $(DATA) \
		$(if $(filter sample,$(DATA)),$(SAMPLE)) --output runs/imdb-$(if $(filter sample hub,$(DATA)),$(DATA),folder)

demo: .venv/installed-imdb  ## type a review and see a model's prediction explained; PORT=, CHECKPOINT=folder
	$(BIN)/python examples/imdb/demo.py $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) --port $(or $(PORT),8000)

docs: .venv/installed-test  ## build the documentation site into build/site; a broken link or an unknown name fails
	$(BIN)/mkdocs build --strict

docs-serve: .venv/installed-test  ## serve the documentation site here, rebuilt after every change; PORT=
	$(BIN)/mkdocs serve --dev-addr localhost:$(or $(PORT),8000)

test: .venv/installed-test  ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist worksteal

test-fast: .venv/installed-test  ## the library's quick tests, half a minute: run it while you work
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist worksteal -m "not slow" $(FAST)

test-gpu: .venv/installed-test  ## the tests that need a GPU; fails without one
	$(BIN)/python -c "import torch, sys; torch.cuda.is_available() or sys.exit('no GPU that PyTorch can use')"
	$(BIN)/python -m pytest -m gpu

fuzz: .venv/installed-test  ## random calls against torch.nn.GRU, random files, random options; MINUTES=1, ARGS="modules --seed 7"
	PYTHONPATH=.:tests/support:tests/fuzzing:tests/kernels/native OMP_NUM_THREADS=1 $(BIN)/python -m fuzzing --minutes $(or $(MINUTES),1) $(ARGS)

sanitize: .venv/installed-test  ## the native kernels under sanitizers and valgrind: some ten minutes
	$(BIN)/python tests/kernels/native/sanitize.py

coverage: .venv/installed-test  ## branches that the library's tests take, in Python and C++ (with clang); half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov --cov-report=term-missing tests/kernels tests/grucore tests/pytorch tests/support
	$(BIN)/python tests/kernels/native/branches.py

test-ptx: .venv/installed-test  ## execute every plan's PTX without a GPU, hours; resumes where it stopped; ARGS="layers --only bf16"
	PYTHONPATH=.:tests/support:tests/ptxrun OMP_NUM_THREADS=1 $(BIN)/python -m ptxrun --jobs $(THREADS) $(ARGS)

bench: OUT := runs/bench-$(shell date +%Y%m%d-%H%M%S)
bench: .venv/installed-bench  ## time grucore, torch.nn.GRU and others side by side on the CPU, 10 minutes; OUT=, SUITE=grid
	$(BIN)/python -m benchmarks.measuring.ceilings --out $(OUT)
	$(BIN)/python -m benchmarks.measuring.run --suite $(or $(SUITE),grid-short) --out $(OUT)
	$(BIN)/python -m benchmarks.measuring.imdb_epoch --out $(OUT)
	$(BIN)/python -m benchmarks.publishing.report $(OUT)

check: .venv/installed-test  ## ruff, clang-format, type check, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules grucore

clean:  ## remove .venv and the files of tools (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
