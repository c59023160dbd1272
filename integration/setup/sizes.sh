#!/usr/bin/env bash
# Whether the programs that `make build` has made are as small as the README says: sizes.sh ISA...
# The README has one bound for all of them, as "each under 8 MiB". It is raised by decision, not at each change.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Other settings than those of a release make other sizes.
[ -z "${CARGO_PROFILE_RELEASE_LTO:-}" ] || exit 0
bound=$(grep -oE "each under [0-9]+ MiB" README.md | head -1 | cut -d' ' -f3) || true
[ -n "$bound" ] || { echo "sizes: README.md does not say how large vmm is (as \"each under 8 MiB\")" >&2; exit 1; }
status=0
for isa in "$@"; do
  bytes=$(stat -c %s "${CARGO_TARGET_DIR:-target}/$isa-unknown-linux-musl/release/vmm")
  if [ "$bytes" -ge $((bound * 1048576)) ]; then
    awk -v bytes="$bytes" -v bound="$bound" -v isa="$isa" 'BEGIN {
      printf "sizes: README.md says under %s MiB, %s has %.1f: mend that, or the figure\n", bound, isa, bytes / 1048576
    }' >&2
    status=1
  fi
done
exit $status
