#!/usr/bin/env bash
# The debugger's rules under Miri, which finds what is undefined and what races: miri.sh FILTER...
source "$(dirname "$0")/common.sh"
cd "$SETUP_DIR/../.."
# The compiler that comes with this Miri.
TOOLCHAIN=nightly-2026-05-20
command -v rustup >/dev/null || die "Miri comes by rustup, which is missing"
if ! cargo "+$TOOLCHAIN" miri --version >/dev/null 2>&1; then
  say "installing Miri of $TOOLCHAIN"
  rustup -q toolchain install "$TOOLCHAIN" --profile minimal --component miri --component rust-src >/dev/null
fi
# Clocks are read.
MIRIFLAGS=-Zmiri-disable-isolation cargo "+$TOOLCHAIN" miri test -q -p guest-debug --lib --target-dir target/miri -- "$@"
