#!/usr/bin/env bash
# The demonstration, for one architecture, with what it needs and no more: demo.sh ISA
#   gdb; Debian's QEMU; Debian's kernel 6.12 with its symbols, and busybox; our programs, without the optimizations
#   of a release that take minutes; for x86_64 a QEMU of our own, as Debian's loses a guest's breakpoints
# What is missing is made ready side by side, and every few seconds there is a word of each. The kernel is booted when
# it and our programs are there; our QEMU, which takes longest, is compiled meanwhile with what processors are free.
source "$(dirname "$0")/common.sh"
isa=${1:?give x86_64 or aarch64}
[ "$isa" = arm64 ] && isa=aarch64
cd "$SETUP_DIR/../.."
export VMM_TEST_PROFILE=demo
target=${CARGO_TARGET_DIR:-target}
triple=$isa-unknown-linux-musl
kernel=$CACHE/kernels/$isa/6.12

say() { printf 'demo: %s\n' "$*" >&2; }

case $isa in
  # Debian's shows the first part while ours is compiled.
  x86_64) emulators=(qemu-system-x86 seabios) needs=() ;;
  aarch64) emulators=() needs=(QEMU) ;;
  *) die "ARCH is x86_64 or aarch64, not '$isa'" ;;
esac

# plan - what is going to happen, and how long it takes. Of compiling, seconds of one processor (2026-11-26).
plan() {
  local seconds=0 lines=() cores
  cores=$(nproc)
  if [ ! -e "$kernel/vmlinux" ] || [ ! -e "$CACHE/busybox/$isa/busybox" ]; then
    lines+=("downloads Debian's kernel 6.12 for $isa with its symbols: 350 MB")
  fi
  if [ ! -e "$target/$triple/demo/case" ]; then
    lines+=("compiles vmm and its tests, and downloads the crates that they need")
    seconds=$((seconds + PROGRAMS_SECONDS))
  fi
  if [ "$isa" = x86_64 ] && ! integration/setup/qemu.sh is-built; then
    lines+=("compiles a QEMU of its own, from 24 MB of Debian's source: Debian's loses breakpoints of a guest in a guest")
    seconds=$((seconds + QEMU_SECONDS))
  fi
  if [ "$isa" = aarch64 ] && [ ! -e "$CACHE/tools/qemu-system-aarch64-trixie-$(uname -m)/run" ]; then
    lines+=("downloads Debian 13's QEMU for aarch64 with its libraries: 50 MB")
  fi
  say "boots a Debian kernel for $isa under vmm, types into its shell, and debugs another with gdb: a minute"
  if [ ${#lines[@]} -gt 0 ]; then
    say "before, once, it (what is here already is not listed):"
    printf 'demo: * %s\n' "${lines[@]}" >&2
    say "about $(((seconds / cores + 59) / 60)) minutes on $cores processors that are free, besides downloads"
  fi
}
PROGRAMS_SECONDS=170
QEMU_SECONDS=240
plan
install_packages gdb-multiarch "${emulators[@]}" qemu-system-data xz-utils

logs=$(mktemp -d)
declare -A jobs=()
# A job has a group of its own, so that what it has started ends with it.
end_jobs() { [ ${#jobs[@]} -eq 0 ] || kill -- "${jobs[@]/#/-}" 2>/dev/null || true; }
trap 'end_jobs; rm -rf "$logs"; exit 130' INT TERM

# begin PART COMMAND... - runs a command beside the others.
begin() {
  set -m
  "${@:2}" >"$logs/$1" 2>&1 </dev/null &
  jobs[$1]=$!
  set +m
}

# The program that shows it runs on this machine, whichever is shown.
native=$(uname -m)-unknown-linux-musl
programs() {
  local own=()
  [ "$triple" = "$native" ] && own=(--bin demo)
  cargo build --profile demo --target "$triple" -p guest-vmm -p integration --bin vmm --bin case "${own[@]}" \
    && { [ "$triple" = "$native" ] || cargo build --profile demo --target "$native" -p integration --bin demo; }
}

# progress PART - how far a part is, in a few words.
progress() {
  case $1 in
    kernel)
      local got
      got=$(du -cbs "$CACHE"/dbg.*/ "$CACHE"/deb.*/ 2>/dev/null | tail -1 | cut -f1)
      echo "kernel: $(tail -1 "$logs/kernel" | sed 's/^setup: //') ($(( ${got:-0} >> 20 )) MiB)" ;;
    QEMU)
      local steps
      [ "$isa" = aarch64 ] || steps=$(tail -c 4096 "$CACHE/qemu-build.log" 2>/dev/null | grep -aoE '\[[0-9]+/[0-9]+\]' | tail -1)
      echo "QEMU: $(tail -1 "$logs/QEMU" | sed 's/^setup: //; s/ (.*//') ${steps:-}" ;;
    programs)
      echo "programs: compiling, crate $(grep -c Compiling "$logs/programs")" ;;
  esac
}

# wait_for PART... - until these are ready; all that runs has a word now and then.
wait_for() {
  local part said=$SECONDS
  while :; do
    for part in "${!jobs[@]}"; do
      kill -0 "${jobs[$part]}" 2>/dev/null && continue
      if ! wait "${jobs[$part]}"; then
        tail -5 "$logs/$part" >&2
        unset "jobs[$part]"
        end_jobs
        rm -rf "$logs"
        die "the demonstration's $part could not be made ready"
      fi
      unset "jobs[$part]"
      say "$((SECONDS - start)) s: $part ready"
    done
    local waits=
    for part in "$@"; do [ -z "${jobs[$part]:-}" ] || waits=1; done
    [ -n "$waits" ] || return 0
    if [ $((SECONDS - said)) -ge 5 ]; then
      said=$SECONDS
      for part in "${!jobs[@]}"; do say "$((SECONDS - start)) s: $(progress "$part")"; done
    fi
    sleep 0.2
  done
}

# show PART - a part of the demonstration itself.
show() {
  "$target/$native/demo/demo" "$isa" "$1" && return
  end_jobs
  rm -rf "$logs"
  exit 1
}

start=$SECONDS
begin kernel env VMM_SETUP_SERIES=6.12 VMM_SETUP_ONLY_BOOT=1 integration/setup/kernels.sh "$isa"
begin programs programs
case $isa in
  x86_64) begin QEMU nice -n 10 integration/setup/qemu.sh ;;
  aarch64) begin QEMU integration/setup/qemu-aarch64.sh ;;
esac
wait_for kernel programs "${needs[@]}"
show boot
[ -z "${jobs[QEMU]:-}" ] || say "QEMU is not ready yet"
wait_for QEMU
rm -rf "$logs"
show debug
say "$((SECONDS - start)) s in all"
