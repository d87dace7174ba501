# SPDX-License-Identifier: Apache-2.0
#
# Everything is built under $(BUILD). Reading this file runs no program, so that `make help` and `make deps` work on a
# machine without a compiler; what the compiler accepts is found out once, by the rule of $(BUILD)/cflags.
#
# Variables: CC, CFLAGS, LDFLAGS, BUILD, V=1 (show commands), WERROR=1 (warnings are errors), SAN (sanitizers),
#            LISTEN, DATA and ARGS (make run), TESTS (make test), BASE and IMAGE (make image), PREFIX, DESTDIR.

BUILD ?= build
CFLAGS ?= -O2 -g
PREFIX ?= /usr/local
SAN ?=
WERROR ?= $(if $(filter true 1,$(CI)),1)
PYTHON = $(firstword $(wildcard /usr/bin/python3) python3)
Q = $(if $(V),,@)
# One job per processor, unless make was started with -j.
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))
MAKEFLAGS += --no-print-directory

WARN := -Wall -Wextra -Wconversion -Wshadow -Wvla -Wstrict-prototypes -Wformat=2 -Wimplicit-fallthrough
# Each is used if the compiler accepts it without a warning; ':' joins words that go together. A later one wins.
HARDEN := -Werror=format-security -Werror=implicit -Werror=incompatible-pointer-types -Werror=int-conversion \
    -Wtrampolines -Wbidi-chars=any -fno-delete-null-pointer-checks -fno-strict-overflow -fno-strict-aliasing -fexceptions \
    -fstack-clash-protection -fstack-protector-strong -fcf-protection=full -mbranch-protection=standard \
    -ftrivial-auto-var-init=zero -U_FORTIFY_SOURCE:-D_FORTIFY_SOURCE=2 -U_FORTIFY_SOURCE:-D_FORTIFY_SOURCE=3
HARDEN_LINK := -Wl,-z,nodlopen -Wl,-z,noexecstack -Wl,-z,relro -Wl,-z,now -Wl,--as-needed
SANITIZE := -fsanitize=$(SAN):-fno-sanitize-recover=all -fno-omit-frame-pointer -U_FORTIFY_SOURCE
PACKAGES := libmicrohttpd jansson libuv sqlite3 zlib

KERNELS := $(sort $(wildcard kernels/*.c))
PROTO := $(sort $(wildcard proto/*.c))
SERVER := $(sort $(wildcard server/*.c))
TEST_KERNELS := $(sort $(wildcard tests/kernels/test_*.c))
TEST_PROTO := $(sort $(wildcard tests/proto/test_*.c))
TEST_SERVER := $(sort $(wildcard tests/server/test_*.c))
TEST_NUMBERS := $(sort $(wildcard tests/numbers/test_*.c))
TEST_C := $(TEST_KERNELS) $(TEST_PROTO) $(TEST_NUMBERS) $(TEST_SERVER)
# A file beside the tests of a folder that is not named test_*.c is linked into each of them.
HELPERS := $(sort $(filter-out $(TEST_C),$(wildcard $(addsuffix /*.c,tests/kernels tests/proto tests/numbers tests/server))))
SCRIPTS := $(sort $(wildcard tests/conformance/test_*.py tests/e2e/test_*.py tests/e2e/test_*.sh))
# A sanitizer says nothing about includes and images.
SCRIPTS := $(if $(SAN),$(filter-out %/test_container.py,$(SCRIPTS)),tests/check_layers.py $(SCRIPTS))

objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
programs = $(patsubst %.c,$(BUILD)/%,$(1))
LIB_KERNELS := $(BUILD)/libnormd-kernels.a
LIB_PROTO := $(BUILD)/libnormd-proto.a
NORMD := $(BUILD)/normd
TESTS ?= $(call programs,$(TEST_C)) $(SCRIPTS)

.PHONY: all run test test-kernels test-asan test-tsan check-layers image format lint deps install clean help
.PHONY: check programs FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(LIB_KERNELS) $(LIB_PROTO) $(NORMD) ## build the libraries and the server (the default)
	@:

run: ## install what is missing, build, start on 127.0.0.1:8080 with its data in ./data (LISTEN=, DATA=, ARGS='--threads 2')
	@deploy/deps build
	@$(MAKE) $(JOBS) all
	@exec $(NORMD) $(if $(LISTEN),--listen '$(LISTEN)') $(if $(DATA),--data '$(DATA)') $(ARGS)

test: ## install what is missing, build, run every test (TESTS='build/tests/server/test_layer ...' runs some)
	@deploy/deps build test
	@$(MAKE) $(JOBS) programs
	@$(MAKE) check

test-kernels: ## the tests of kernels/ alone
	@$(MAKE) test TESTS='$(call programs,$(TEST_KERNELS))'

test-asan: ## every test under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) test BUILD=build/asan SAN=address,undefined

test-tsan: ## every test under ThreadSanitizer
	@$(MAKE) test BUILD=build/tsan SAN=thread

check-layers: ## includes, symbols and headers keep to their layers
	@deploy/deps build test
	@$(MAKE) $(JOBS) all
	@BUILD=$(BUILD) CC='$(CC)' $(PYTHON) tests/check_layers.py

# The image is built without tests/.
include kernels/tiers.mk $(wildcard $(foreach t,bench numbers interop,tests/$t/$t.mk))

image: ## build the container image with docker, podman or buildah (BASE=debian:bookworm-slim IMAGE=normd)
	@deploy/image

format: ## lay out the C files as .clang-format says
	@deploy/deps lint
	@clang-format -i $(LINTED)

LINTED = $(sort $(wildcard $(foreach d,kernels proto server tests tests/kernels tests/proto tests/numbers tests/server tests/bench,$d/*.[ch])))
lint: ## layout and static analysis; every finding is an error
	@deploy/deps build test lint
	@clang-format --dry-run -Werror $(LINTED)
	@! grep -nE '^.{121,}' $(LINTED) $(wildcard kernels/*.inc)
	@printf '%s\n' $(KERNELS) $(PROTO) $(SERVER) | \
	  xargs -P $(shell nproc) -n 1 sh -c 'clang-tidy --quiet "$$0" -- -std=c17 -D_GNU_SOURCE -I. 2>/dev/null'

deps: ## install the packages that building and running need and that are missing (Debian, Ubuntu)
	@deploy/deps build

install: all ## copy server, kernel library and its header under PREFIX (/usr/local)
	install -D -m 755 $(NORMD) $(DESTDIR)$(PREFIX)/bin/normd
	install -D -m 644 $(LIB_KERNELS) $(DESTDIR)$(PREFIX)/lib/libnormd-kernels.a
	install -D -m 644 kernels/bn.h $(DESTDIR)$(PREFIX)/include/normd/bn.h

clean: ## remove what was built (./data stays)
	rm -rf $(BUILD)

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1	\2/p' Makefile $(wildcard */*.mk */*/*.mk) | expand -t 16

# Tests. The factor scales their counts, so that sanitizer builds, 5 to 20 times slower, end in reasonable time.
check: export NORMD_BIN = $(abspath $(NORMD))
check: export NORMD_TEST_SCALE ?= $(if $(SAN),0.05,1)
check: export BUILD := $(BUILD)
check: export CC := $(CC)
check: programs
	@$(RUNNER) $(PYTHON) tests/run.py --limit $(if $(SAN),900,600) --reports $(BUILD)/reports $(TESTS)

programs: $(filter $(BUILD)/%,$(TESTS)) $(if $(filter %.py %.sh,$(TESTS)),all)
	@:

# ThreadSanitizer of gcc 12 cannot run with the address randomization of kernels since 6.6.
RUNNER = $(if $(findstring thread,$(SAN)),$$(setarch -R true 2>/dev/null && echo setarch -R))

# Flags live in files that compiler and linker read with @. They are written anew when $(KEY) or this file changes.
KEY := $(CC) $(CFLAGS) $(CPPFLAGS) $(LDFLAGS) $(SAN) $(WERROR)
ifneq ($(strip $(file <$(BUILD)/key)),$(strip $(KEY)))
$(BUILD)/key: FORCE
endif
$(BUILD)/key: | $(filter deps,$(MAKECMDGOALS))
	@mkdir -p $(@D) && printf '%s\n' '$(strip $(KEY))' >$@

accepted = for word in $(1); do flags=$$(echo "$$word" | tr : ' '); \
	if $(CC) $(CFLAGS) $(WARN) -Werror $$flags -o $@.probe $@.c >/dev/null 2>&1; then echo "$$flags"; fi; done; rm -f $@.probe

$(BUILD)/cflags: $(BUILD)/key Makefile
	@command -v $(firstword $(CC)) >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists $(PACKAGES) || \
	  { echo 'compiler or libraries are missing: make deps' >&2; exit 1; }
	@printf '#include <stdio.h>\nint main(void) { return 0; }\n' >$@.c
	@{ echo '-std=c17 -D_GNU_SOURCE -I. -fPIE -ffp-contract=off $(WARN) $(if $(WERROR),-Werror)'; \
	  $(call accepted,$(if $(SAN),$(SANITIZE),$(HARDEN))); pkg-config --cflags $(PACKAGES); } >$@

$(BUILD)/ldflags: $(BUILD)/cflags
	@cp $(BUILD)/cflags.c $@.c
	@{ echo '-pie'; $(call accepted,$(if $(SAN),$(SANITIZE),$(HARDEN_LINK))); } >$@

$(BUILD)/libs: $(BUILD)/cflags
	@pkg-config --libs $(PACKAGES) >$@

$(BUILD)/%.o: %.c $(BUILD)/cflags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) @$(BUILD)/cflags $(ISA) $(CFLAGS) $(CPPFLAGS) -MMD -MP -c -o $@ $<

# Whichever file embeds the contract with .incbin: -MMD does not see that.
$(call objects,$(wildcard proto/openapi.c server/openapi.c server/routes.c)): proto/openapi.yaml

$(LIB_KERNELS): $(call objects,$(KERNELS))
$(LIB_PROTO): $(call objects,$(PROTO))
%.a:
	@mkdir -p $(@D)
	@echo "  AR    $@"
	$(Q)rm -f $@ && $(AR) rcsD $@ $^

LINK = $(CC) @$(BUILD)/ldflags $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o %.a,$^)
$(NORMD): $(call objects,$(SERVER)) $(LIB_PROTO) $(LIB_KERNELS) $(BUILD)/ldflags $(BUILD)/libs
	@echo "  LD    $@"
	$(Q)$(LINK) @$(BUILD)/libs -lm -pthread

# Tests link what their layer may use, and no more.
helpers = $(call objects,$(filter tests/$(1)/%,$(HELPERS)))
$(call programs,$(TEST_C) $(BENCH)): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/ldflags $(BUILD)/libs
	@echo "  LD    $@"
	$(Q)$(LINK) $(LINK_LIBS) -lm -pthread
$(call programs,$(TEST_KERNELS)): $(call helpers,kernels) $(LIB_KERNELS)
$(call programs,$(TEST_KERNELS)): LINK_LIBS = -lcmocka
$(BUILD)/tests/kernels/test_memory: LINK_LIBS += -Wl,--wrap=malloc
$(call programs,$(TEST_PROTO)): $(call helpers,proto) $(LIB_PROTO) $(LIB_KERNELS)
$(call programs,$(TEST_PROTO)): LINK_LIBS = -lcmocka -ljansson -lz
$(BUILD)/tests/proto/test_buffer: LINK_LIBS += -Wl,--wrap=realloc
$(call programs,$(TEST_NUMBERS)): $(call helpers,numbers) $(LIB_PROTO)
$(call programs,$(TEST_SERVER)): $(call helpers,server) $(call objects,$(filter-out server/main.c,$(SERVER))) $(LIB_PROTO) $(LIB_KERNELS)
$(call programs,$(TEST_SERVER)): LINK_LIBS = -lcmocka @$(BUILD)/libs

-include $(patsubst %.c,$(BUILD)/%.d,$(KERNELS) $(PROTO) $(SERVER) $(TEST_C) $(HELPERS) $(BENCH) $(BENCH_PARTS))
