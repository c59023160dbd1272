#!/usr/bin/env bash
# Debian packages that the harness calls: stock QEMU for x86_64, its firmware, gdb for both architectures, lldb,
# what people open dumps with, and tools.
source "$(dirname "$0")/common.sh"
install_packages binutils crash gdb-multiarch lldb makedumpfile qemu-system-x86 qemu-system-data qemu-user-static seabios xz-utils
