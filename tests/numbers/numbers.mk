# SPDX-License-Identifier: Apache-2.0
#
# Part of ../../Makefile: the numbers on the wire, as many of them as there is time for. ARGS are options of
# test_numbers, e.g. ARGS='--f32 16 --f64 1e7 --decimals 1e7'.

HARD_NUMBERS := $(BUILD)/tests/numbers/hard.txt

.PHONY: test-numbers
test-numbers: ## numbers in and out: every f32, 10^9 f64, hard cases; minutes (ARGS='--f32 16 --f64 1e7 --decimals 1e7')
	@deploy/deps build test
	@$(MAKE) $(JOBS) $(BUILD)/tests/numbers/test_numbers $(HARD_NUMBERS)
	@$(BUILD)/tests/numbers/test_numbers --all --hard $(HARD_NUMBERS) --seed $$(date +%s) $(ARGS)

$(HARD_NUMBERS): tests/numbers/hard.py
	@mkdir -p $(@D)
	@echo "  PY    $<"
	$(Q)$(PYTHON) $< >$@
