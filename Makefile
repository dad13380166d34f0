# Everything a fresh machine needs: `make sample` makes audio, `make test` runs the tests.
# VENV may point elsewhere, so that several checkouts share one environment.
VENV ?= .venv
PYTHON ?= python3
export PATH := $(abspath $(VENV))/bin:$(PATH)
INSTALLED := $(VENV)/.installed

.PHONY: install sample test lint debug compare-debug audit clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade-strategy only-if-needed -e ".[test]"
	touch $(INSTALLED)

sample: install
	audio-var generate --label flute --label brass --label guitar --label organ --pitch 60 --pitch 67 --count 1 --seed 0 \
		--out clips --plot clips/spectrograms.png

# A process a core; the tests of a file stay together, for they share what they train.
test: install
	python -m pytest -n auto --dist loadfile --durations 15

# The recipes in miniature, on the demo data that ships: each must lower its loss by the amount it states.
debug: install
	python -m recipes.check_debug

# The comparison in miniature, on the demo data that ships, with its report.
COMPARE_DEBUG ?= runs/compare_debug
compare-debug: install
	next-scale compare run recipes/compare/debug.yaml --out $(COMPARE_DEBUG) --jobs 2
	next-scale compare report $(COMPARE_DEBUG)

lint: install
	ruff check .
	ruff format --check .

# Known weaknesses of the installed packages; needs PyPI's service, or OSV's with AUDIT="-s osv".
audit: install
	python -m pip install --quiet "pip-audit>=2.10"
	pip-audit --strict --skip-editable $(AUDIT)

clean:
	rm -rf clips .pytest_cache .ruff_cache build *.egg-info
