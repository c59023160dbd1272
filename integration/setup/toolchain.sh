#!/usr/bin/env bash
# Rust targets, by rustup. A toolchain without rustup must have them already.
source "$(dirname "$0")/common.sh"
command -v cargo >/dev/null || die "cargo is missing: install Rust (1.88 or later) by rustup, with cc as linker"
command -v cc >/dev/null || install_packages gcc libc6-dev
command -v rustup >/dev/null || exit 0
cd "$SETUP_DIR"
installed=$(rustup target list --installed)
missing=()
for target in "$@"; do
  grep -qx "$target" <<<"$installed" || missing+=("$target")
done
[ ${#missing[@]} -eq 0 ] && exit 0
say "adding Rust targets: ${missing[*]}"
rustup -q target add "${missing[@]}"
