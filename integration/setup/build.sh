#!/usr/bin/env bash
# Static programs, vmm and what the tests run, by a profile of Cargo.toml: build.sh PROFILE ISA...
# What is compiled is said as cargo says it; with fat link-time optimization the last step of each program takes minutes,
# so there is a word meanwhile. At the end, where the programs are.
source "$(dirname "$0")/common.sh"
cd "$SETUP_DIR/../.."
target=${CARGO_TARGET_DIR:-target}

say() { printf 'build: %s\n' "$*" >&2; }

profile=$1
shift
case $profile in
  release) takes="fifteen minutes" ;;
  *) takes="eight minutes" ;;
esac
say "vmm and its test programs for $* ($takes for both architectures on two processors, from nothing)"
begun=$SECONDS said=$SECONDS
# All at once: a program's last step has one processor, and there are three programs of each architecture.
targets=("${@/#/--target=}")
cargo build --profile "$profile" "${targets[@]/%/-unknown-linux-musl}" -p guest-vmm -p guest-kvm -p integration --bin vmm --bin case --example monitor &
job=$!
trap 'kill "$job" 2>/dev/null; exit 130' INT TERM
# With a word every half a minute.
while kill -0 "$job" 2>/dev/null; do
  sleep 0.2
  if [ $((SECONDS - said)) -ge 30 ]; then
    said=$SECONDS
    say "$((SECONDS - begun)) s"
  fi
done
wait "$job"
say "$((SECONDS - begun)) s; vmm is here:"
for isa in "$@"; do
  program=$target/$isa-unknown-linux-musl/$profile/vmm
  say "  $program ($(stat -c %s "$program" | awk '{ printf "%.1f MiB", $1 / 1048576 }'))"
done
