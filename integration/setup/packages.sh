#!/usr/bin/env bash
# Debian packages that the harness calls: stock QEMU for the aarch64 nest and as the peer in
# benchmarks, its firmware, and tools.
source "$(dirname "$0")/common.sh"
install_packages qemu-system-arm qemu-system-x86 qemu-system-data seabios xz-utils
