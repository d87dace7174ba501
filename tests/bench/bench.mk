# SPDX-License-Identifier: Apache-2.0
#
# Part of ../../Makefile: programs that measure. ARGS are options of bench_kernels, e.g. ARGS="--filter 'nhwc 2t'".

BENCH := $(addprefix tests/bench/,bare_mhd.c bench_kernels.c $(if $(wildcard /usr/include/dnnl.h),bench_onednn.c))
# Whatever is no program of its own is linked into bench_kernels.
BENCH_PARTS := $(filter-out tests/bench/bare_% tests/bench/bench_%,$(sort $(wildcard tests/bench/*.c)))
BENCH_KERNELS := $(filter-out %/bare_mhd,$(call programs,$(BENCH)))

.PHONY: bench-http bench-kernels bench-peers

bench-http: ## requests per second and latency beside a bare libmicrohttpd server
	@deploy/deps build test bench
	@$(MAKE) $(JOBS) all $(BUILD)/tests/bench/bare_mhd
	@NORMD_BIN=$(abspath $(NORMD)) BUILD=$(BUILD) $(PYTHON) tests/bench/bench_http.py

bench-kernels: ## the kernels beside memcpy, and beside oneDNN and PyTorch where they are (ARGS='--filter nhwc')
	@deploy/deps build
	@$(MAKE) -s $(JOBS) $(BENCH_KERNELS)
	@mkdir -p $(BUILD)/bench
	@$(BUILD)/tests/bench/bench_kernels --json $(BUILD)/bench/kernels.json \
	  $(patsubst %,--onednn %,$(filter %/bench_onednn,$(BENCH_KERNELS))) \
	  --torch '$(PYTHON) tests/bench/bench_torch.py' $(ARGS)

bench-peers: ## install oneDNN and PyTorch, then bench-kernels
	@deploy/deps build peers
	@$(MAKE) bench-kernels

$(BUILD)/tests/bench/bare_mhd: LINK_LIBS = @$(BUILD)/libs
$(BUILD)/tests/bench/bench_kernels: $(call objects,$(BENCH_PARTS)) $(LIB_KERNELS)
$(BUILD)/tests/bench/bench_onednn: LINK_LIBS = -ldnnl -lgomp
