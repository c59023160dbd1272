#!/usr/bin/env bash
# The public interface of the packages that others build on, beside what docs/api says that it is: api.sh [renew].
#   $CACHE/cargo-public-api/<version>/    the tool that prints an interface
# The tool understands the JSON of few compilers, so the two are pinned together.
source "$(dirname "$0")/common.sh"
cd "$SETUP_DIR/../.."
PUBLIC_API=0.52.0
TOOLCHAIN=nightly-2026-05-20
ISAS=(x86_64 aarch64)

command -v rustup >/dev/null || die "the public interface is not looked at: its compiler, $TOOLCHAIN, needs rustup"
place=$CACHE/cargo-public-api/$PUBLIC_API
lock api
if [ ! -x "$place/bin/cargo-public-api" ]; then
  say "building cargo-public-api $PUBLIC_API (a minute or two; kept for later runs)"
  cargo install -q --locked --version "$PUBLIC_API" --debug --root "$place" cargo-public-api \
    >"$CACHE/cargo-public-api.log" 2>&1 \
    || { tail -5 "$CACHE/cargo-public-api.log" >&2; die "cargo-public-api's build failed; see $CACHE/cargo-public-api.log"; }
fi
installed=$(rustup target list --installed --toolchain "$TOOLCHAIN" 2>/dev/null) || installed=
if [ "$(grep -c -- '-unknown-linux-gnu' <<<"$installed")" -lt ${#ISAS[@]} ]; then
  say "installing the compiler $TOOLCHAIN"
  rustup -q toolchain install "$TOOLCHAIN" --profile minimal >/dev/null
  rustup -q target add --toolchain "$TOOLCHAIN" "${ISAS[@]/%/-unknown-linux-gnu}"
fi

# interface PACKAGE LIBRARY ISA - prints it, without what the compiler derives. kvm-bindings has its types in modules
# of each architecture, and shows them without.
interface() {
  cargo "+$TOOLCHAIN" rustdoc -q -p "$1" --all-features --lib --target "$3-unknown-linux-gnu" --target-dir target/api \
    -- -Z unstable-options --output-format json --cap-lints allow
  "$place/bin/cargo-public-api" --color never -sss --rustdoc-json "target/api/$3-unknown-linux-gnu/doc/$2.json" \
    | sed -E 's/kvm_bindings::(x86_64|arm64)::bindings::/kvm_bindings::/g'
}

mkdir -p docs/api target/api
status=0
for library in arch linux debug kvm; do
  kept=docs/api/guest-$library.txt
  for isa in "${ISAS[@]}"; do
    # The architecture of a target is a value everywhere but in kvm, whose interface is the same for both.
    [ "$library" = kvm ] || [ "$isa" = "${ISAS[0]}" ] || continue
    found=target/api/guest-$library-$isa.txt
    interface "guest-$library" "$library" "$isa" >"$found"
    if [ "${1:-}" = renew ] && [ "$isa" = "${ISAS[0]}" ]; then cp "$found" "$kept"; fi
    diff -u "$kept" "$found" >&2 || status=1
  done
done
[ $status = 0 ] || die "the public interface is not what docs/api says; if that is meant: make api-renew"
leaks=$(grep -nE '\b(kvm_ioctls|kvm_bindings|vm_memory|gdbstub)::' docs/api/guest-debug.txt || true)
[ -z "$leaks" ] || die "the interface of guest-debug has types of what it is not to name: $leaks"
