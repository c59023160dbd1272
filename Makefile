# `make` lists the targets. Everything that is needed is installed or fetched by them; what
# is fetched is kept in a cache outside the work tree (VMM_TEST_CACHE, ~/.cache/vmm-test).

ARCH ?= $(shell uname -m)
ISAS := x86_64 aarch64
# Lints are for this machine and, as what is shipped is, for the other architecture with musl.
OTHER := $(if $(filter x86_64,$(shell uname -m)),aarch64,x86_64)
MUSL = $(1)-unknown-linux-musl
CARGO ?= cargo
TARGETS := $(foreach isa,$(ISAS),$(call MUSL,$(isa))) x86_64-unknown-none aarch64-unknown-none-softfloat

.DEFAULT_GOAL := help
.PHONY: help build check test unit miri cases soak fuzz bench demo deb setup ready toolchain kernels qemu tools peer layering package oldest api api-renew clean clean-cache

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: toolchain ## boot a Debian kernel, run a command in it, and debug one (ARCH=aarch64 for the other one)
	@integration/setup/demo.sh $(ARCH)

test: setup check package oldest api unit cases ## everything: set-up, checks, unit tests, the cases on both architectures

check: toolchain layering ## format, lints, links in the documentation; well under a minute once built
	$(CARGO) fmt --all --check
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	@# What differs by architecture is in this package; whether all of it compiles is seen where programs for cases are.
	$(CARGO) clippy -q -p guest-kvm --all-targets --target $(call MUSL,$(OTHER)) -- -D warnings
	@# What a debugger is embedded with: no feature, and each one alone.
	$(CARGO) clippy -q -p guest-debug -p guest-kvm --no-default-features -- -D warnings
	@for feature in disassembly dump dwarf linux; do \
	  $(CARGO) clippy -q -p guest-debug --no-default-features --features $$feature -- -D warnings || exit 1; \
	done
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc -q --workspace --no-deps

unit: toolchain ## unit tests
	$(CARGO) test -q --workspace --exclude integration
	$(CARGO) test -q -p guest-debug --no-default-features
	$(CARGO) test -q -p integration --lib

miri: toolchain ## the debugger's rules under Miri, by hand (FILTER=live::runner for some)
	@integration/setup/miri.sh $(or $(FILTER),live::gate live::times live::runner live::step arming trap:: flow::tests::aarch64 flow::tests::x86_with gdb::memory_stream simulated::tests::session context::tests::a_breakpoint_on_the_way)

cases: setup ## the cases on real KVM (FILTER=name for some; ALL=1 has all on both architectures)
	@rm -rf logs
	VMM_TEST_ALL=$(ALL) $(CARGO) test -q -p integration --test kvm -- $(FILTER)

soak: setup ## the long runs in full, ten minutes and more (SEED=7 for the chance of another run)
	@rm -rf logs
	@seed=$(or $(SEED),$$(date +%s)); echo "soak: SEED=$$seed" >&2; \
	  VMM_TEST_SOAK=$$seed $(CARGO) test -q -p integration --test kvm -- $(or $(FILTER),::long_)

bench: ready build peer ## measure vmm against QEMU on the same nested hosts (PART=boot, debug, calls, dumps, names, linux or run for one part)
	@VMM_TEST_PROFILE=release $(CARGO) run -q --release -p integration --bin bench -- $(PART)

fuzz: toolchain ## libFuzzer on every decoder of outside bytes (TARGET=packets for one, SECONDS=30)
	@integration/setup/fuzz.sh "$(or $(TARGET),all)" "$(or $(SECONDS),30)"

build: toolchain ## static release binaries of both architectures, in target/*/release
	@integration/setup/build.sh release $(ISAS)
	@integration/setup/sizes.sh $(ISAS)

deb: build ## Debian packages with manual pages and completions, in target/debian (DEBFULLNAME, DEBEMAIL: who maintains them)
	@integration/setup/deb.sh $(ISAS)

setup: ready ## what the tests need: Debian packages, kernels, QEMU, tools for dumps, our binaries
	@integration/setup/build.sh $(or $(VMM_TEST_PROFILE),tested) $(ISAS)

ready: toolchain ## the same without our binaries
	@integration/setup/packages.sh
	@# Kernels come over the network while QEMU and crash are compiled. What a shell runs beside itself does
	@# not see Ctrl-C.
	@integration/setup/kernels.sh & fetched=$$!; \
	  trap 'kill $$fetched 2>/dev/null; exit 130' INT TERM; \
	  { integration/setup/qemu-aarch64.sh && integration/setup/qemu.sh && integration/setup/tools.sh; }; built=$$?; \
	  wait $$fetched && exit $$built

kernels: ## Debian's kernels and busybox for both architectures
	@integration/setup/packages.sh
	@integration/setup/kernels.sh

qemu: ## the QEMUs that carry the nests
	@integration/setup/qemu-aarch64.sh
	@integration/setup/qemu.sh

tools: ## newer tools for dumps than Debian 12 has
	@integration/setup/tools.sh

peer: ## Debian's QEMU with its libraries, to be measured against
	@integration/setup/peer.sh

toolchain: ## Rust targets
	@integration/setup/toolchain.sh $(TARGETS)

layering: ## cfg(target_arch) and KVM stay where they belong
	@integration/setup/layering.sh

package: toolchain ## the packages that can be published, each built from what is in it alone; a minute when nothing of it is built yet
	@# Cargo unpacks and builds what it has packed once for each version, and would take what was packed the last time.
	@rm -rf "$${CARGO_TARGET_DIR:-target}"/debug/.fingerprint/guest-*
	@rm -rf "$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/-*/guest-* "$${CARGO_HOME:-$$HOME/.cargo}"/registry/cache/-*/guest-*
	$(CARGO) package -q --workspace --exclude integration --allow-dirty

oldest: toolchain ## compile what is published with the oldest Rust that it states
	@integration/setup/oldest.sh

api: toolchain ## whether public interfaces are what docs/api says they are
	@integration/setup/api.sh

api-renew: toolchain ## write docs/api anew
	@integration/setup/api.sh renew

clean: ## remove what was built
	$(CARGO) clean
	rm -rf logs

clean-cache: ## remove what was fetched
	rm -rf "$${VMM_TEST_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/vmm-test}"
