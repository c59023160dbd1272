#!/usr/bin/env bash
# Tools for dumps beside Debian 12's own, of which some are too old for Linux 6.12 or for our dumps, and
# none reads dumps of another architecture:
#   $CACHE/tools/drgn/                      drgn, from PyPI
#   $CACHE/tools/<program>-<suite>-<isa>/run
#       runs a program of a newer Debian with that Debian's libraries; aarch64's under QEMU's emulation
#       of a process
#   $CACHE/tools/crash-for-aarch64/crash    crash for dumps of aarch64, which runs here
source "$(dirname "$0")/common.sh"
lock tools

DRGN=0.3.0
if [ ! -e "$CACHE/tools/drgn/ready-$DRGN" ]; then
  say "fetching drgn $DRGN"
  rm -rf "$CACHE/tools/drgn"
  python3 -m pip install -q --disable-pip-version-check --no-deps --target "$CACHE/tools/drgn" "drgn==$DRGN" \
    >"$CACHE/tools/drgn.log" 2>&1 || { tail -5 "$CACHE/tools/drgn.log" >&2; die "cannot install drgn"; }
  touch "$CACHE/tools/drgn/ready-$DRGN"
fi

newer trixie x86_64 makedumpfile makedumpfile
newer trixie aarch64 makedumpfile makedumpfile
newer trixie x86_64 gdb-multiarch gdb-multiarch
newer forky x86_64 crash crash

place=$CACHE/tools/crash-for-aarch64
if [ ! -x "$place/crash" ]; then
  # binutils' and gdb's sources are in it.
  install_packages bison dpkg-dev flex g++ gcc libc6-dev libgmp-dev libmpfr-dev libncurses-dev m4 make \
    patch texinfo zlib1g-dev
  work=$(mktemp -d "$CACHE/crash.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  newer_lists trixie
  say "downloading crash's source"
  (cd "$work" && newer_apt trixie apt-get -q source --tar-only crash >apt.log 2>&1) \
    || { tail -5 "$work/apt.log" >&2; die "cannot download crash's source"; }
  mkdir "$work/source"
  tar -xf "$work"/crash_*.orig.tar.* -C "$work/source" --strip-components=1
  say "building crash for dumps of aarch64 (4 to 7 minutes on two cores; kept for later runs)"
  make -C "$work/source" -j"$(nproc)" target=ARM64 CFLAGS=-O1 CXXFLAGS=-O1 >"$CACHE/tools/crash.log" 2>&1 \
    || { tail -5 "$CACHE/tools/crash.log" >&2; die "crash's build failed; see $CACHE/tools/crash.log"; }
  mkdir -p "$place"
  install -s -m 755 "$work/source/crash" "$place/crash.new"
  mv "$place/crash.new" "$place/crash"
fi
