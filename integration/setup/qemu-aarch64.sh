#!/usr/bin/env bash
# The QEMU that carries the aarch64 nest: a newer Debian's, with its libraries. In Debian 12's a nest takes two to three
# times as long (docs/testing.md).
#   $CACHE/tools/qemu-system-aarch64-trixie-<isa of this machine>/run
source "$(dirname "$0")/common.sh"
lock tools
newer trixie "$(uname -m)" qemu-system-arm qemu-system-aarch64
