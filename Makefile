# Every target sets up what it needs: a fresh clone and `make test` or `make demo` is all there is to type.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
# The S3 server of the tests. A process of its own in an environment of its own: it needs an older python-dateutil.
MOTO := $(VENV)/moto/bin/moto_server

.PHONY: help venv test test-api test-long lint format demo test-redis test-ray bench-compression bench-claims bench-merging bench-plans bench-serving bench-codec bench-eeg bench-overhead bench-scaleout soak clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

venv: $(STAMP)  ## a virtual environment in .venv with everything installed

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard core/patchbay/execute/kernels/*.c)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,eeg,objects,otel,ray,test]'
	touch $(STAMP)

$(MOTO): | $(STAMP)
	$(PYTHON) -m venv $(VENV)/moto
	$(VENV)/moto/bin/python -m pip install --quiet 'moto[s3]==5.2.5' flask flask-cors

lint: venv  ## ruff, mypy --strict and the import ladder
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv  ## rewrite the code in the one format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

test: lint $(MOTO)  ## all tests; PATCHBAY_REQUIRE_REDIS=1 and PATCHBAY_REQUIRE_PROMTOOL=1 make what is missing an error
	PATCHBAY_REQUIRE_MOTO=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

test-api: venv  ## CASES=10000 requests of a fuzzer over the whole OpenAPI of real servers; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.openapi.run $(or $(CASES),10000) .test-api.jsonl

test-long: venv $(MOTO)  ## thousands of interleaved requests, every architecture that answers many at once, every fault of the network, 100,000 damaged files
	PATCHBAY_LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 tests/engine/test_continuous.py tests/engine/test_interleavings.py \
	  tests/engine/test_encoder_interleavings.py tests/engine/test_isolation.py tests/engine/test_mixed.py \
	  tests/service/demo tests/jobs/test_crash.py tests/crash tests/e2e/test_server.py \
	  tests/benchmarks/test_soak.py tests/benchmarks/test_methods.py tests/benchmarks/test_serving.py tests/benchmarks/test_overhead.py \
	  tests/service/commands tests/stores/test_faults.py tests/benchmarks/test_trained.py tests/benchmarks/test_quality_merging.py tests/service/test_canaries.py \
	  tests/attacks

demo: venv  ## the product's main job on real digits, in demo-run/
	$(BIN)/patchbay demo

test-redis: venv $(MOTO)  ## the stores' contracts on a real redis-server, installed where it is missing, and a real S3 server
	.ci/install redis-server=redis-server
	PATCHBAY_REQUIRE_REDIS=1 PATCHBAY_REQUIRE_MOTO=1 $(BIN)/pytest -q tests/store tests/stores tests/jobs tests/crash tests/e2e/test_stores.py

test-ray: venv  ## two replicas on a real Ray, one of them killed: some minutes
	PATCHBAY_RAY=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/e2e/test_replicas.py

bench-compression: venv  ## which method keeps the most at equal bytes; TASKS=dir BACKBONE=folder add text, QUICK=1 is short
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality_compression $(if $(TASKS),--tasks $(TASKS) --backbone $(BACKBONE)) \
	  $(if $(QUICK),--quick)

bench-claims: venv  ## published NPS against its claims, at equal density; TASKS, BACKBONE and QUICK as above
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.claims $(if $(TASKS),--tasks $(TASKS) --backbone $(BACKBONE)) \
	  $(if $(QUICK),--quick)

bench-merging: venv  ## which merging method keeps the most of several fine-tunes; TASKS=dir BACKBONE=folder, QUICK=1 is short
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality_merging --tasks $(TASKS) --backbone $(BACKBONE) \
	  $(if $(QUICK),--quick)

bench-plans: venv  ## seconds and bytes of a NeuroMerge, by Gram matrices and by the published decomposition
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plans

bench-serving: venv  ## many fine-tunes of one model, served in every way there is; QUICK=1 takes three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving $(if $(QUICK),--quick)

bench-codec: venv  ## bits a parameter against the entropy bound and GB/s, for each encoding
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.codec

bench-eeg: venv  ## DATA=DIR of one subject of PhysioNet's motor data: half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.eeg --data $(DATA)

bench-scaleout: venv  ## one and two replicas on this machine, and many in a simulation; draws benchmarks/scaleout.png
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scaleout --plot benchmarks/scaleout.png

bench-overhead: venv  ## milliseconds that keys, limits and the audit log add to a request, on SQLite and Redis
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overhead

soak: venv  ## a server under churn for MINUTES=30: its memory must stay flat, and nothing may fail; draws benchmarks/soak.png
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30) --plot benchmarks/soak.png

clean:  ## remove what the targets made
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
