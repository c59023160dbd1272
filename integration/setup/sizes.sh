#!/usr/bin/env bash
# Whether the README says how large the programs are that `make build` has made: sizes.sh ISA...
# A tenth more or less is let pass; the figures are in the README as "x86_64 4.3 MiB".
set -euo pipefail
cd "$(dirname "$0")/../.."
# Other settings than those of a release make other sizes.
[ -z "${CARGO_PROFILE_RELEASE_LTO:-}" ] || exit 0
status=0
for isa in "$@"; do
  bytes=$(stat -c %s "${CARGO_TARGET_DIR:-target}/$isa-unknown-linux-musl/release/vmm")
  said=$(grep -oE "$isa [0-9]+\.[0-9] MiB" README.md | head -1 | cut -d' ' -f2) || true
  [ -n "$said" ] || continue
  awk -v bytes="$bytes" -v said="$said" -v isa="$isa" 'BEGIN {
    mib = bytes / 1048576
    if (said >= mib * 0.9 && said <= mib * 1.1) exit 0
    printf "sizes: README.md says %s MiB of %s, it is %.1f: mend the figure and its date\n", said, isa, mib
    exit 1
  }' >&2 || status=1
done
exit $status
