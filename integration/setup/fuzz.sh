#!/usr/bin/env bash
# Runs libFuzzer on one target (or all) for some seconds each: fuzz.sh [TARGET|all] [SECONDS].
# What it finds stays in the cache, as does the corpus.
source "$(dirname "$0")/common.sh"
targets=${1:-all}
seconds=${2:-30}
[ "$targets" != all ] || targets=$(sed -n 's/^ *name: "\([a-z_]*\)",$/\1/p; s/^ *Fuzzed { name: "\([a-z_]*\)".*/\1/p' "$(dirname "$0")/../src/fuzz.rs")
install_packages g++
cd "$(dirname "$0")/../fuzz"
# Coverage as `cargo fuzz` asks for it, with a compiler that is not nightly's and so without
# sanitizers: everything that is fuzzed is safe code.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build -q --release --target "$host" --target-dir ../../target/fuzz
for target in $targets; do
  corpus=$CACHE/fuzz/$target
  mkdir -p "$corpus"
  say "fuzzing $target for $seconds s"
  FUZZ_TARGET=$target "../../target/fuzz/$host/release/fuzz" -max_total_time="$seconds" -max_len=8192 \
    -print_final_stats=1 -artifact_prefix="$CACHE/fuzz/$target-" "$corpus" 2>&1 | tail -n 8
done
