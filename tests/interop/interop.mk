# SPDX-License-Identifier: Apache-2.0
#
# Part of ../../Makefile: other people's programs against the server. What cannot be installed is skipped, and said so.

INTEROP := $(sort $(wildcard tests/interop/test_*.py))

.PHONY: interop
interop: export NORMD_BIN = $(abspath $(NORMD))
interop: ## tritonclient, NumPy, safetensors, PyTorch, Node against the server (ARGS=tests/interop/test_node.py)
	@deploy/deps build test
	@for group in interop torch; do \
	  deploy/deps $$group || echo 'make interop: what needs the packages above is skipped'; done
	@$(MAKE) $(JOBS) all
	@python=$$(tests/interop/environment $(BUILD)/interop $(PYTHON)) && \
	  $$python tests/run.py --limit 600 $(or $(ARGS),$(INTEROP))
