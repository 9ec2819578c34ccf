# `make demo` and `make test` do all their set-up themselves. PYTHON chooses the interpreter of the
# new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXAMPLES := $(VENV)/installed-for-examples

.PHONY: demo test docs torture bench gpu dist lint clean

demo: $(STAMP)
	$(BIN)/python examples/contigs/demo.py

# Most tests wait more than they work, so ten processes run them on two cores. All of these load
# the tests, which are compiled once before that; an inherited PYTHONDONTWRITEBYTECODE would prevent
# it. What is wrong with a test the run itself says.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP) lint
	@sh scripts/test_packages.sh
	@$(BIN)/pytest --collect-only -q >/dev/null || true
	$(BIN)/pytest -n 10 --dist worksteal

# A site of all pages, which needs no network. Whatever sphinx has to say is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -n -E -q -c docs . build/docs
	@echo "Open build/docs/docs/index.html"

# Takes an hour or more on two cores; docs/reliability.md says what it does. Some rows need
# root, and say so where they do not have it.
torture: $(STAMP) $(EXAMPLES)
	@sh scripts/test_packages.sh
	GPUSPOOL_TESTS_EXECUTE=1 $(BIN)/pytest -n 8 --dist worksteal -m "slow or not slow"
	cd tests && $(CURDIR)/$(BIN)/python -m torture --lanes 2

# Peers go into venvs of their own below benchmarks/. All benches together take hours:
# benchmarks/README.md shows how to name the ones you want.
bench: $(STAMP)
	$(BIN)/python benchmarks/install_peers.py
	$(BIN)/python -m benchmarks --doc docs/performance.md --plot docs/throughput.svg \
		--json benchmarks/figures.json

# What only a machine with a GPU can show, in at most eight minutes. It makes one table, and the
# same as JSON; where there is no GPU it says so.
gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu_checks.py --json benchmarks/gpu.json

# The wheel and the source archive go into dist/, and both are tried as a stranger would.
dist: $(VENV)/dist-installed
	$(BIN)/python scripts/dist.py

$(VENV)/dist-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[test,dist]'
	touch $@

# The mirror shows how the code reads, and never fails: see decision 15.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/mirror.py

# constraints.txt holds the versions that were tested. pyproject.toml asks for low ones, so that the
# torch that a site already has will do.
# pip shows its progress on a terminal, and nothing in a log.
$(STAMP): pyproject.toml constraints.txt
	@echo "Once: gpuspool, PyTorch and the test tools go into $(VENV), most of it PyTorch."
	@echo "1.2 GB on disk with PyTorch for CPUs; its build for GPUs brings CUDA along, several GB."
	$(PYTHON) -m venv $(VENV)
	@quiet=--quiet; [ -t 1 ] && quiet=; set -x; $(BIN)/python -m pip install $$quiet \
		--disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# What some examples and recipes use; their tests are among those of `make torture`.
$(EXAMPLES): $(STAMP)
	@echo "Once: transformers, accelerate and Lightning for the tests of the examples, 250 MB on disk."
	@quiet=--quiet; [ -t 1 ] && quiet=; set -x; $(BIN)/python -m pip install $$quiet \
		--disable-pip-version-check -c constraints.txt -e '.[examples]'
	touch $@

clean:
	rm -rf $(VENV) dist spool-* build/docs logs digits.pt .pytest_cache .mypy_cache .ruff_cache
