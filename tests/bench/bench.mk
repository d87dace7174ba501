# SPDX-License-Identifier: Apache-2.0
#
# Part of ../../Makefile: programs that measure. ARGS are options of bench_kernels, e.g. ARGS="--filter 'nhwc 2t'".

BENCH := $(addprefix tests/bench/,bare_mhd.c bare_sqlite.c bench_numbers.c bench_kernels.c \
    $(if $(wildcard /usr/include/dnnl.h),bench_onednn.c))
# Whatever is no program of its own is linked into bench_kernels.
BENCH_PARTS := $(filter-out tests/bench/bare_% tests/bench/bench_%,$(sort $(wildcard tests/bench/*.c)))
BENCH_BARE := $(filter %/bare_mhd %/bare_sqlite,$(call programs,$(BENCH)))
BENCH_NUMBERS := $(BUILD)/tests/bench/bench_numbers
BENCH_KERNELS := $(filter-out $(BENCH_BARE) $(BENCH_NUMBERS),$(call programs,$(BENCH)))
VENV := $(BUILD)/bench/venv

.PHONY: bench-http bench-kernels bench-numbers bench-peers

bench-http: ## HTTP beside bare libmicrohttpd, SQLite and FastAPI + PyTorch (ROUNDS=7 DURATION=1 ONLY='1x8')
	@deploy/deps build test bench
	@$(MAKE) $(JOBS) all $(BENCH_BARE)
	@deploy/deps fastapi && $(MAKE) $(VENV)/ready || echo 'without FastAPI: its environment cannot be made'
	@NORMD_BIN='$(or $(NORMD_BIN),$(abspath $(NORMD)))' BUILD=$(BUILD) \
	  ROUNDS=$(ROUNDS) DURATION=$(DURATION) ONLY='$(ONLY)' $(PYTHON) tests/bench/bench_http.py

# Debian's PyTorch, and the rest as pinned.
$(VENV)/ready: tests/bench/requirements.txt
	@rm -rf $(@D)
	@$(PYTHON) -m venv --system-site-packages $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-kernels: ## the kernels beside memcpy, and beside oneDNN and PyTorch where they are (ARGS='--filter nhwc')
	@deploy/deps build
	@$(MAKE) -s $(JOBS) $(BENCH_KERNELS)
	@mkdir -p $(BUILD)/bench
	@$(BUILD)/tests/bench/bench_kernels --json $(BUILD)/bench/kernels.json \
	  $(patsubst %,--onednn %,$(filter %/bench_onednn,$(BENCH_KERNELS))) \
	  --torch '$(PYTHON) tests/bench/bench_torch.py' $(ARGS)

bench-numbers: ## numbers of JSON read and written, beside jansson
	@deploy/deps build
	@$(MAKE) -s $(JOBS) $(BENCH_NUMBERS)
	@$(BENCH_NUMBERS)

bench-peers: ## install oneDNN and PyTorch, then bench-kernels
	@deploy/deps build peers
	@$(MAKE) bench-kernels

$(BENCH_BARE) $(BENCH_NUMBERS): LINK_LIBS = @$(BUILD)/libs
$(BUILD)/tests/bench/bench_kernels: $(call objects,$(BENCH_PARTS)) $(LIB_KERNELS)
$(BUILD)/tests/bench/bench_onednn: LINK_LIBS = -ldnnl -lgomp
$(BENCH_NUMBERS): $(LIB_PROTO) $(LIB_KERNELS)
