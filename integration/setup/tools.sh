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
  mkdir -p "$CACHE/tools"
  python3 -m pip install -q --disable-pip-version-check --no-deps --target "$CACHE/tools/drgn" "drgn==$DRGN" \
    >"$CACHE/tools/drgn.log" 2>&1 || { tail -5 "$CACHE/tools/drgn.log" >&2; die "cannot install drgn"; }
  touch "$CACHE/tools/drgn/ready-$DRGN"
fi

# newer_lists SUITE - the lists of a newer Debian alone, from where the machine has its Debian from.
newer_lists() {
  local suite=$1 place=$CACHE/apt-$1 uri type
  if [ -e "$place/ready" ] && [ -z "$(find "$place/ready" -mmin +720)" ]; then return; fi
  locked apt private_apt_config
  uri=$(grep -rhoE '^(URIs:|deb) .*' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null \
    | grep -oE '[a-z]+://[^ ]*/debian/?( |$)' | head -1) || true
  uri=${uri:-http://deb.debian.org/debian}
  mkdir -p "$place"/{lists/partial,archives/partial,sources.d}
  for type in deb deb-src; do
    echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
  done > "$place/sources.d/$suite.list"
  sed "s,$APT_ROOT/,$place/,g; s,\"$APT_ROOT\",\"$place\",g" "$APT_ROOT/apt.conf" > "$place/apt.conf"
  say "reading the package lists of Debian's $suite"
  APT_CONFIG=$place/apt.conf apt-get -q update >"$place/update.log" 2>&1 \
    || die "apt-get update failed; see $place/update.log"
  touch "$place/ready"
}

# newer_apt SUITE COMMAND... - a command of apt with those lists.
newer_apt() { APT_CONFIG=$CACHE/apt-$1/apt.conf "${@:2}"; }

# newer SUITE ISA PACKAGE PROGRAM - a program of a newer Debian with all that it depends on.
newer() {
  local suite=$1 isa=$2 package=$3 program=$4 loader emulator work
  local place=$CACHE/tools/$program-$suite-$isa
  [ -e "$place/run" ] && return
  case $isa in
    x86_64) loader=ld-linux-x86-64.so.2 emulator= ;;
    aarch64) loader=ld-linux-aarch64.so.1 emulator=qemu-aarch64-static ;;
  esac
  work=$(mktemp -d "$CACHE/$program.XXXXXX")
  newer_lists "$suite"
  unpack_whole "$isa" "$package" "$work/root" newer_apt "$suite"
  cat > "$work/root/run" <<RUN
#!/bin/sh
root=\$(dirname "\$0")
libraries=\$root/usr/lib/$isa-linux-gnu
export PYTHONHOME="\$root/usr"
exec $emulator "\$libraries/$loader" --library-path "\$libraries" "\$root/usr/bin/$program" "\$@"
RUN
  chmod 755 "$work/root/run"
  rm -rf "$place"
  mv "$work/root" "$place"
  rm -rf "$work"
}

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
