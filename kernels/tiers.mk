# SPDX-License-Identifier: Apache-2.0
#
# Part of ../Makefile: a tier's files alone are compiled for its instructions, where the compiler has them, and may be run
# under an emulator.

ISA_avx2 := -mavx2:-mf16c
ISA_avx512 := -mavx512f:-mavx512bw:-mavx512dq:-mavx512vl:-mf16c:-mprefer-vector-width=512

define tier
$(call objects,$(wildcard kernels/$(1)_*.c)): ISA = @$(BUILD)/isa-$(1)
$(call objects,$(wildcard kernels/$(1)_*.c)): $(BUILD)/isa-$(1)
endef
$(foreach name,avx2 avx512,$(eval $(call tier,$(name))))

$(BUILD)/isa-%: $(BUILD)/cflags
	@cp $(BUILD)/cflags.c $@.c
	@{ $(call accepted,$(ISA_$*)); } >$@

.PHONY: test-neon
test-neon: ## every slot for arm64, cross-built and run under qemu-user
	@deploy/deps build test neon
	@NORMD_TEST_EMULATOR='qemu-aarch64 -L /usr/aarch64-linux-gnu' NORMD_TEST_SCALE=0.05 \
	  $(MAKE) test BUILD=build/neon CC=aarch64-linux-gnu-gcc TESTS='$(patsubst %,build/neon/tests/kernels/test_%,half tiers)'
