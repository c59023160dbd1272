#!/usr/bin/env bash
# Debian packages that the harness calls: stock QEMU for the aarch64 nest and as the peer in
# benchmarks, its firmware, gdb for both architectures, lldb, what people open dumps with, and tools.
source "$(dirname "$0")/common.sh"
install_packages binutils crash gdb-multiarch lldb makedumpfile qemu-system-arm qemu-system-x86 qemu-system-data qemu-user-static seabios xz-utils
