#!/usr/bin/env bash
# Compiles the packages with the oldest compiler that they say they compile with: what a debugger is embedded with, for one
# architecture without features, and everything for the other one.
source "$(dirname "$0")/common.sh"
cd "$SETUP_DIR/../.."
TARGETS=(x86_64-unknown-linux-musl aarch64-unknown-linux-musl)
# What the embedded guests are.
BARE=(x86_64-unknown-none aarch64-unknown-none-softfloat)
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
[ -n "$oldest" ] || die "Cargo.toml says no rust-version"
command -v rustup >/dev/null || die "Rust $oldest is not tried: that needs rustup"
lock oldest
installed=$(rustup target list --installed --toolchain "$oldest.0" 2>/dev/null) || installed=
for target in "${TARGETS[@]}" "${BARE[@]}"; do
  grep -qx "$target" <<<"$installed" && continue
  say "installing Rust $oldest"
  rustup -q toolchain install "$oldest.0" --profile minimal >/dev/null
  rustup -q target add --toolchain "$oldest.0" "${TARGETS[@]}" "${BARE[@]}"
  break
done
check() { cargo "+$oldest.0" check -q --target "$1" --target-dir target/oldest "${@:2}"; }
check "${TARGETS[0]}" -p guest-debug -p guest-kvm --no-default-features
check "${TARGETS[1]}" --workspace --exclude integration
