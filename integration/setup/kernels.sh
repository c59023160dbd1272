#!/usr/bin/env bash
# Debian's cloud kernels 6.1 and 6.12 and a static busybox, for both architectures:
#   $CACHE/kernels/<isa>/<6.1|6.12>/{vmlinuz,config,release,modules/}
#   $CACHE/kernels/<isa>/6.12/vmlinux, with debug symbols
#   $CACHE/busybox/<isa>/busybox
source "$(dirname "$0")/common.sh"
lock_cache

debian_arch() { case $1 in x86_64) echo amd64 ;; aarch64) echo arm64 ;; esac; }

# The package behind Debian's metapackage of a kernel series.
kernel_package() {
  local arch=$1 series=$2 meta
  case $series in
    6.1) meta=linux-image-cloud-$arch ;;
    *) meta=linux-image-$series-cloud-$arch ;;
  esac
  private_apt apt-cache depends --no-recommends --no-suggests "$meta:$arch" \
    | sed -n 's/^ *Depends: \(linux-image-[0-9][^: ]*\).*/\1/p' | head -1
}

for isa in ${*:-x86_64 aarch64}; do
  arch=$(debian_arch "$isa")
  for series in 6.1 6.12; do
    place=$CACHE/kernels/$isa/$series
    [ -e "$place/vmlinuz" ] && continue
    private_apt_update
    package=$(kernel_package "$arch" "$series")
    [ -n "$package" ] || die "Debian's lists name no $series cloud kernel for $arch"
    unpacked=$(mktemp -d "$CACHE/kernel.XXXXXX")
    unpack_deb "$package:$arch" "$unpacked"
    release=${package#linux-image-}
    rm -rf "$place.new" "$place"
    mkdir -p "$place.new"
    mv "$unpacked/boot/config-$release" "$place.new/config"
    mv "$unpacked/boot/System.map-$release" "$place.new/System.map" 2>/dev/null || true
    mv "$unpacked"/lib/modules/"$release"/kernel "$place.new/modules" 2>/dev/null \
      || mv "$unpacked"/usr/lib/modules/"$release"/kernel "$place.new/modules"
    printf '%s\n' "$release" > "$place.new/release"
    mv "$unpacked/boot/vmlinuz-$release" "$place.new/vmlinuz"
    mv "$place.new" "$place"
    rm -rf "$unpacked"
  done
  # Debug symbols of 6.12, for gdb: of the -dbg package (300 MB) only vmlinux is unpacked.
  place=$CACHE/kernels/$isa/6.12
  if [ ! -e "$place/vmlinux" ]; then
    private_apt_update
    package=linux-image-$(cat "$place/release")-dbg
    work=$(mktemp -d "$CACHE/dbg.XXXXXX")
    say "downloading $package:$arch (300 MB; only its vmlinux is kept)"
    (cd "$work" && private_apt apt-get -q download "$package:$arch" >apt.log 2>&1) \
      || { cat "$work/apt.log" >&2; die "cannot download the Debian package $package:$arch"; }
    dpkg-deb --fsys-tarfile "$work"/*.deb \
      | tar -x -C "$work" --wildcards --no-anchored --strip-components=5 'debug/boot/vmlinux-*'
    mv "$work"/vmlinux-* "$place/vmlinux"
    rm -rf "$work"
  fi
  if [ ! -e "$CACHE/busybox/$isa/busybox" ]; then
    unpacked=$(mktemp -d "$CACHE/busybox.XXXXXX")
    unpack_deb "busybox-static:$arch" "$unpacked"
    mkdir -p "$CACHE/busybox/$isa"
    install -m 755 "$(find "$unpacked" -path '*/bin/busybox' -type f)" "$CACHE/busybox/$isa/busybox"
    rm -rf "$unpacked"
  fi
done
