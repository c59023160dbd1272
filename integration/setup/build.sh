#!/usr/bin/env bash
# Static release programs: vmm, and what the tests run: build.sh ISA...
# What is compiled is said as cargo says it; with fat link-time optimization the last step of each program takes minutes,
# so there is a word meanwhile. At the end, where the programs are.
source "$(dirname "$0")/common.sh"
cd "$SETUP_DIR/../.."
target=${CARGO_TARGET_DIR:-target}

say() { printf 'build: %s\n' "$*" >&2; }

# compile ISA WHAT... - one call of cargo, with a word every half a minute.
compile() {
  local isa=$1 begun=$SECONDS job said=$SECONDS
  shift
  cargo build --release --target "$isa-unknown-linux-musl" "$@" &
  job=$!
  trap 'kill "$job" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$job" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - said)) -ge 30 ]; then
      said=$SECONDS
      say "$isa: $((SECONDS - begun)) s"
    fi
  done
  wait "$job"
}

begun=$SECONDS
for isa in "$@"; do
  say "vmm and its test programs for $isa (ten minutes for both architectures on two processors, from nothing)"
  compile "$isa" -p guest-vmm -p integration --bin vmm --bin case
  compile "$isa" -p guest-kvm --example monitor
done
say "$((SECONDS - begun)) s; vmm is here:"
for isa in "$@"; do say "  $target/$isa-unknown-linux-musl/release/vmm"; done
