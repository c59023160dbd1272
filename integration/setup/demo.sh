#!/usr/bin/env bash
# What the demonstration needs, for one architecture, and no more: demo.sh ISA
#   gdb; a QEMU for the nest (x86_64: ours, as Debian's loses a guest's breakpoints); Debian's kernel 6.12 with
#   its symbols, and busybox; our programs, without the optimizations of a release that take minutes
# Its parts run beside each other, and every few seconds there is a word of each.
source "$(dirname "$0")/common.sh"
isa=${1:?give x86_64 or aarch64}
[ "$isa" = arm64 ] && isa=aarch64
cd "$SETUP_DIR/../.."

case $isa in
  x86_64) install_packages gdb-multiarch qemu-system-data seabios xz-utils ;;
  aarch64) install_packages gdb-multiarch qemu-system-arm qemu-system-data xz-utils ;;
  *) die "ARCH is x86_64 or aarch64, not '$isa'" ;;
esac

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

programs() {
  cargo build --profile demo --target "$isa-unknown-linux-musl" -p guest-vmm -p integration --bin vmm --bin case \
    && cargo build -p integration --bin demo
}

# progress PART - how far a part is, in a few words.
progress() {
  case $1 in
    kernel)
      local got
      got=$(du -cbs "$CACHE"/dbg.*/ "$CACHE"/deb.*/ 2>/dev/null | tail -1 | cut -f1)
      echo "kernel: $(tail -1 "$logs/kernel" | sed 's/^setup: //') ($(( ${got:-0} >> 20 )) MiB)" ;;
    qemu)
      local steps
      steps=$(tail -c 4096 "$CACHE/qemu-build.log" 2>/dev/null | grep -aoE '\[[0-9]+/[0-9]+\]' | tail -1)
      echo "QEMU: $(tail -1 "$logs/qemu" | sed 's/^setup: //; s/ (.*//') $steps" ;;
    programs)
      echo "programs: $(grep -c Compiling "$logs/programs") crates" ;;
  esac
}

start=$SECONDS
begin kernel env VMM_SETUP_SERIES=6.12 VMM_SETUP_ONLY_BOOT=1 integration/setup/kernels.sh "$isa"
begin programs programs
if [ "$isa" = x86_64 ]; then begin qemu integration/setup/qemu.sh; fi

said=$SECONDS
while [ ${#jobs[@]} -gt 0 ]; do
  sleep 0.2
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
  if [ $((SECONDS - said)) -ge 5 ]; then
    said=$SECONDS
    for part in "${!jobs[@]}"; do say "$((SECONDS - start)) s: $(progress "$part")"; done
  fi
done
rm -rf "$logs"
