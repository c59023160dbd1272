#!/usr/bin/env bash
# Tools for dumps that are newer than Debian 12's, which are too old for Linux 6.12:
#   $CACHE/tools/drgn/               drgn, from PyPI
#   $CACHE/tools/trixie/<isa>/run    runs crash or makedumpfile of Debian 13, with their libraries;
#                                    aarch64's under QEMU's emulation of a process
source "$(dirname "$0")/common.sh"
lock_cache

DRGN=0.3.0
if [ ! -e "$CACHE/tools/drgn/ready-$DRGN" ]; then
  say "fetching drgn $DRGN"
  rm -rf "$CACHE/tools/drgn"
  mkdir -p "$CACHE/tools"
  python3 -m pip install -q --disable-pip-version-check --no-deps --target "$CACHE/tools/drgn" "drgn==$DRGN" \
    >"$CACHE/tools/drgn.log" 2>&1 || { tail -5 "$CACHE/tools/drgn.log" >&2; die "cannot install drgn"; }
  touch "$CACHE/tools/drgn/ready-$DRGN"
fi

# apt with the lists of Debian 13 alone, from where the machine has its Debian from.
TRIXIE=$CACHE/apt-trixie
trixie_apt() { APT_CONFIG=$TRIXIE/apt.conf "$@"; }
trixie_apt_update() {
  local uri
  uri=$(grep -rhoE '^(URIs:|deb) .*' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null \
    | grep -oE '[a-z]+://[^ ]*/debian/?( |$)' | head -1) || true
  uri=${uri:-http://deb.debian.org/debian}
  mkdir -p "$TRIXIE"/{lists/partial,archives/partial,sources.d}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie main" \
    > "$TRIXIE/sources.d/trixie.list"
  sed "s,$CACHE/apt/,$TRIXIE/,g; s,\"$CACHE/apt\",\"$TRIXIE\",g" "$APT_ROOT/apt.conf" > "$TRIXIE/apt.conf"
  say "reading Debian 13's package lists"
  trixie_apt apt-get -q update >"$TRIXIE/update.log" 2>&1 || die "apt-get update failed; see $TRIXIE/update.log"
}

for isa in x86_64 aarch64; do
  place=$CACHE/tools/trixie/$isa
  [ -e "$place/run" ] && continue
  case $isa in
    x86_64) arch=amd64 loader=ld-linux-x86-64.so.2 emulator= ;;
    aarch64) arch=arm64 loader=ld-linux-aarch64.so.1 emulator=qemu-aarch64-static ;;
  esac
  [ -n "${TRIXIE_READY:-}" ] || { private_apt_config; trixie_apt_update; TRIXIE_READY=1; }
  say "downloading crash and makedumpfile of Debian 13 for $isa"
  work=$(mktemp -d "$CACHE/trixie.XXXXXX")
  mkdir -p "$work/root"
  packages=(crash makedumpfile libbz2-1.0 libc6 libdw1t64 libelf1t64 libgcc-s1 liblzma5 liblzo2-2
    libncursesw6 libsnappy1v5 libstdc++6 libtinfo6 libzstd1 zlib1g)
  (cd "$work" && trixie_apt apt-get -q download "${packages[@]/%/:$arch}" >apt.log 2>&1) \
    || { cat "$work/apt.log" >&2; die "cannot download packages of Debian 13"; }
  for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  cat > "$work/root/run" <<RUN
#!/bin/sh
root=\$(dirname "\$0")
program=\$1
shift
libraries=\$root/usr/lib/$isa-linux-gnu
exec $emulator "\$libraries/$loader" --library-path "\$libraries" "\$root/usr/bin/\$program" "\$@"
RUN
  chmod 755 "$work/root/run"
  mkdir -p "$(dirname "$place")"
  rm -rf "$place"
  mv "$work/root" "$place"
  rm -rf "$work"
done
