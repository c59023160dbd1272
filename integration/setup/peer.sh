#!/usr/bin/env bash
# Debian's QEMU with the libraries it needs, for both architectures, to be run in a nest as
# the peer of benchmarks:
#   $CACHE/peer/<isa>/{qemu,virtiofsd,lib/,share/}
source "$(dirname "$0")/common.sh"
lock peer
install_packages binutils

for isa in ${*:-x86_64 aarch64}; do
  case $isa in
    x86_64) arch=amd64 package=qemu-system-x86 binary=qemu-system-x86_64 loader=lib64/ld-linux-x86-64.so.2 ;;
    aarch64) arch=arm64 package=qemu-system-arm binary=qemu-system-aarch64 loader=lib/ld-linux-aarch64.so.1 ;;
  esac
  place=$CACHE/peer/$isa
  [ -e "$place/virtiofsd" ] && continue
  private_apt_update
  work=$(mktemp -d "$CACHE/peer.XXXXXX")
  : > "$work/status"
  say "downloading Debian's $package for $arch and its libraries"
  # With an empty list of installed packages, apt finds all that the package needs.
  private_apt apt-get -q -y --no-install-recommends --print-uris \
    -o Dir::State::status="$work/status" -o APT::Architecture="$arch" -o APT::Architectures::="$arch" \
    install "$package" 2>"$work/apt.log" | sed -n "s/^'[^']*' \([^ _]*\)_[^ _]*_\([a-z0-9]*\)\.deb .*/\1:\2/p" > "$work/names" \
    || { cat "$work/apt.log" >&2; die "apt cannot resolve $package for $arch"; }
  grep -E '^(lib|qemu-system|seabios|zlib1g|ipxe-qemu)' "$work/names" | sed 's/:all$//' > "$work/wanted"
  mkdir "$work/debs" "$work/root"
  (cd "$work/debs" && xargs -a "$work/wanted" env APT_CONFIG="$APT_ROOT/apt.conf" apt-get -q download) >"$work/download.log" 2>&1 \
    || { tail -3 "$work/download.log" >&2; die "cannot download the packages of $package for $arch"; }
  for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done

  # Only the libraries that the program names, directly or not.
  rm -rf "$place.new" "$place"
  mkdir -p "$place.new/lib" "$place.new/share"
  cp "$work/root/usr/bin/$binary" "$place.new/qemu"
  cp "$work/root/usr/lib/qemu/virtiofsd" "$place.new/virtiofsd"
  queue=("$place.new/qemu" "$place.new/virtiofsd")
  while [ ${#queue[@]} -gt 0 ]; do
    file=${queue[0]}; queue=("${queue[@]:1}")
    for name in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
      [ -e "$place.new/lib/$name" ] && continue
      found=$(find "$work/root" -name "$name" \( -type f -o -type l \) | head -1)
      [ -n "$found" ] || die "no package has $name, which $file needs"
      cp -L "$found" "$place.new/lib/$name"
      queue+=("$place.new/lib/$name")
    done
  done
  cp -L "$work/root/$loader" "$place.new/lib/$(basename "$loader")" 2>/dev/null \
    || cp -L "$work/root/usr/$loader" "$place.new/lib/$(basename "$loader")"
  for file in usr/share/qemu/{qboot.rom,bios-microvm.bin,linuxboot_dma.bin,pvh.bin,efi-virtio.rom} usr/share/seabios/bios-microvm.bin; do
    [ ! -e "$work/root/$file" ] || cp -L "$work/root/$file" "$place.new/share/"
  done
  mv "$place.new" "$place"
  rm -rf "$work"
done
