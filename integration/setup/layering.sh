#!/usr/bin/env bash
# Holds the layers of docs/architecture.md: the architecture of a target is a value except in
# vmm/kvm, which alone calls KVM and knows no devices; arch, debug/linux and debug know no KVM; debug/linux knows arch alone; devices/share, devices/disk
# and devices/net know nothing of ours; arch, debug, debug/linux, devices, devices/net and devices/share have no unsafe code.
set -euo pipefail
cd "$(dirname "$0")/../.."
status=0
complain() { printf 'layering: %s\n' "$*" >&2; status=1; }

found=$(grep -rnE 'target_arch' --include='*.rs' --exclude-dir=target . \
  | grep -v '^\./vmm/kvm/' \
  | grep -v 'CARGO_CFG_TARGET_ARCH' || true)
[ -z "$found" ] || complain "cfg(target_arch) outside vmm/kvm:"$'\n'"$found"

for crate in arch debug debug/linux devices devices/net devices/share; do
  grep -q '^#!\[forbid(unsafe_code)\]' "$crate/src/lib.rs" || complain "$crate does not forbid unsafe code"
done
for crate in arch debug; do
  found=$(cargo tree -q -p "guest-$crate" -e normal,build --target all --prefix none | grep -E '^(kvm|vm-memory|guest-kvm|guest-vmm|guest-devices|guest-share|guest-disk|guest-net)' || true)
  [ -z "$found" ] || complain "$crate depends on KVM, on a guest's memory or on devices: $found"
done
found=$(cargo tree -q -p guest-linux -e normal,build --target all --prefix none | grep -E '^(guest-|kvm|vm-memory|nix|libc)' | grep -vE '^guest-(linux|arch) ' || true)
[ -z "$found" ] || complain "linux depends on what is not below it, or on the host: $found"
found=$(cargo tree -q -p guest-devices -e normal --target all --prefix none | grep -E '^(kvm|guest-kvm|guest-vmm|guest-debug|guest-linux|guest-share|guest-disk|guest-net)' || true)
[ -z "$found" ] || complain "devices depends on what is not below it: $found"
for crate in share disk net; do
  found=$(cargo tree -q -p "guest-$crate" -e normal --target all --prefix none | grep -E '^(guest-|kvm|vm-memory|virtio)' | grep -v "^guest-$crate " || true)
  [ -z "$found" ] || complain "devices/$crate depends on what is ours, or on virtio: $found"
done
# What the library for qcow2 has a crate call unsafe, and nothing else.
found=$(grep -rlE 'allow\(unsafe_code\)' --include='*.rs' devices || true)
[ "$found" = devices/disk/src/qcow2/storage.rs ] || complain "devices allow unsafe code in: $found"
grep -q '^#!\[deny(unsafe_code)\]' devices/disk/src/lib.rs || complain "devices/disk does not deny unsafe code"
found=$(cargo tree -q -p guest-kvm -e normal --target all --prefix none | grep -E '^guest-(devices|vmm) ' || true)
[ -z "$found" ] || complain "kvm depends on what is not below it: $found"
# What an embedder has not asked for.
found=$(cargo tree -q -p guest-debug -p guest-kvm --no-default-features -e normal --target all --prefix none \
  | grep -E '^(acpi_tables|addr2line|elf|gimli|object|flate2|lzo|ruzstd|snap|vm-fdt|yaxpeax-[a-z0-9]*) ' || true)
[ -z "$found" ] || complain "without features, the debugger depends on what these are for: $found"
found=$(cargo tree -q -p guest-vmm -e normal --depth 1 --target all --prefix none | grep -E '^kvm-' || true)
[ -z "$found" ] || complain "vmm calls KVM by itself: $found"
versions=$(cargo tree -q --workspace --target all --prefix none | grep -E '^vm-memory v' | sed 's, (.*,,' | sort -u | wc -l)
[ "$versions" = 1 ] || complain "$versions versions of vm-memory"
# What a guest or a client causes is said through limited, bounded queues: devices and whatever else serves
# guests say it by `tell!`, and nothing writes to standard error by itself (vmm/src/logging.rs).
code() { grep -rnE "$1" --include='*.rs' "${@:2}" | grep -vE '^[^:]+:[0-9]+: *//' || true; }
found=$(code '\blog::(error|warn|info|debug|trace)!' devices/src devices/share/src devices/disk/src devices/net/src)
[ -z "$found" ] || complain "devices logs by itself instead of by tell!:"$'\n'"$found"
machine=vmm/src/machine
served=("$machine"/{hypercalls,hypercalls.rs,rack,rack.rs})
serving=("${served[@]}" "$machine"/{vcpus.rs,serve.rs,serve,services.rs,output_queue.rs,guest_ram.rs} vmm/src/run/sign_watch.rs)
for path in "${serving[@]}"; do
  [ -e "$path" ] || complain "$path is not there any more: look after it where it is now"
done
found=$(code '\blog::(warn|info)!' "${serving[@]}")
[ -z "$found" ] || complain "what serves guests logs by itself instead of by tell!:"$'\n'"$found"
# What serves a guest has one way to the guest's memory, where planted instructions are known (devices/src/ram.rs).
found=$(code '\b(LiveMemory|GuestMemory|vm_memory)\b' "${served[@]}")
[ -z "$found" ] || complain "what serves guests has the guest's memory itself instead of GuestRam:"$'\n'"$found"
found=$(code '\b(eprint|eprintln|print|println|dbg)!|\bstderr\(\)' arch/src debug/src debug/linux/src devices/src devices/share/src devices/disk/src devices/net/src vmm/src vmm/kvm/src \
  | grep -vE '^vmm/src/logging\.rs:|logging::stderr\(\)' || true)
[ -z "$found" ] || complain "printed past the queues of vmm/src/logging.rs:"$'\n'"$found"
# What a guest, a dump or a file has written is escaped in one place.
found=$(code '\bis_control\b|\bREPLACEMENT_CHARACTER\b' arch/src debug/src debug/linux/src devices/src vmm/src | grep -v '^arch/src/plain\.rs:' || true)
[ -z "$found" ] || complain "text is escaped past arch::plain:"$'\n'"$found"
exit $status
