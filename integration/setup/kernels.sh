#!/usr/bin/env bash
# Debian's cloud kernels 6.1 and 6.12 and a static busybox, for both architectures:
#   $CACHE/kernels/<isa>/<6.1|6.12>/{vmlinuz,vmlinux,config,release,modules/}, vmlinux with debug symbols
#   $CACHE/kernels/<isa>/6.12/gdb/, the kernel's own helpers for gdb, as its build makes them
#   $CACHE/kernels/<isa>/6.12/wedge.ko, integration/module for this kernel, with debug symbols and BTF
#   $CACHE/busybox/<isa>/busybox
#   $CACHE/roots/systemd-<isa>.tar, Debian's systemd as a root to be
#   $CACHE/programs/<kexec|passt>/<isa>/{<program>,loader,lib/}
# kernels.sh [ISA...]; VMM_SETUP_SERIES names the series, if not both; with VMM_SETUP_ONLY_BOOT there are only
# kernels with their symbols, and busybox.
source "$(dirname "$0")/common.sh"
lock kernels
series_wanted=${VMM_SETUP_SERIES:-6.1 6.12}

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

# unpack_headers ISA RELEASE ROOT - a kernel's headers and configuration, to ROOT/usr/src.
unpack_headers() {
  unpack_deb "linux-headers-$2:$(debian_arch "$1")" "$3"
  unpack_deb "linux-headers-${2%-cloud-*}-common" "$3"
}

# helpers ISA DIR RELEASE ROOT - the kernel's scripts/gdb for one architecture, to DIR/gdb, by the headers in
# ROOT. Debian ships them only as source; their constants come out of the kernel's headers and configuration by the
# preprocessor, as in the kernel's build (scripts/gdb/linux/Makefile).
helpers() {
  local isa=$1 dir=$2/gdb release=$3 root=$4 work family headers common machine
  local source=$CACHE/kernels/scripts-gdb
  case $isa in
    x86_64) family=x86 machine=() ;;
    aarch64) family=arm64 machine=(-U__x86_64__ -D__aarch64__) ;;
  esac
  install_packages cpp
  if [ ! -e "$source" ]; then
    work=$(mktemp -d "$CACHE/source.XXXXXX")
    unpack_deb linux-source-6.12 "$work"
    mkdir "$work/gdb"
    tar -xJf "$work/usr/src/linux-source-6.12.tar.xz" -C "$work/gdb" --strip-components=3 \
      --wildcards '*/scripts/gdb'
    mv "$work/gdb" "$source"
    rm -rf "$work"
  fi
  headers=$root/usr/src/linux-headers-$release
  common=$root/usr/src/linux-headers-${release%-cloud-*}-common
  rm -rf "$dir.new"
  mkdir -p "$dir.new/scripts"
  cp -r "$source" "$dir.new/scripts/gdb"
  mv "$dir.new/scripts/gdb/vmlinux-gdb.py" "$dir.new"
  cpp -E -x c -P -nostdinc "${machine[@]}" -D__KERNEL__ \
    -I"$common/arch/$family/include" -I"$headers/arch/$family/include/generated" \
    -I"$common/include" -I"$headers/include" \
    -I"$common/arch/$family/include/uapi" -I"$headers/arch/$family/include/generated/uapi" \
    -I"$common/include/uapi" -I"$headers/include/generated/uapi" \
    -include "$common/include/linux/compiler-version.h" -include "$common/include/linux/kconfig.h" \
    -include "$common/include/linux/compiler_types.h" "$source/linux/constants.py.in" \
    | sed '1,/<!-- end-c-headers -->/d' > "$dir.new/scripts/gdb/linux/constants.py"
  mv "$dir.new" "$dir"
}

# wedge_key - what a wedge.ko is built from.
wedge_key() { (cd "$SETUP_DIR/../module" && sha256sum Makefile wedge.c); }

# wedge ISA DIR RELEASE ROOT - the module that wedges a guest, to DIR, by the headers in ROOT, which have the
# BTF of the kernel too. With wedge.key beside it, which says what it is built from.
wedge() {
  local isa=$1 dir=$2 release=$3 root=$4 arch compiler key
  local headers=$root/usr/src/linux-headers-$release log=$dir/wedge.log
  case $isa in
    x86_64) arch=x86 compiler=gcc-12 ;;
    aarch64) arch=arm64 compiler=gcc-12-aarch64-linux-gnu ;;
  esac
  # The compiler that Debian's kernel is built with.
  install_packages "$compiler" make pahole
  unpack_deb "linux-kbuild-${release%-cloud-*}" "$root"
  # What the package includes is where it would be installed.
  sed -i "s|/usr/src/|$root/usr/src/|" "$headers/Makefile"
  key=$(wedge_key)
  mkdir "$root/wedge"
  cp "$SETUP_DIR/../module"/{Makefile,wedge.c} "$root/wedge"
  # Not what `make setup` was called with.
  MAKEFLAGS='' make -C "$headers" M="$root/wedge" ARCH="$arch" KCFLAGS="-ffile-prefix-map=$root=" modules >"$log" 2>&1 \
    || { tail -15 "$log" >&2; die "the build of wedge.ko failed; see $log"; }
  mv "$root/wedge/wedge.ko" "$dir/wedge.ko"
  printf '%s\n' "$key" > "$dir/wedge.key"
  rm "$log"
}

# program ISA SUITE PACKAGE PATH - a program of a Debian package's with the libraries that it needs, unless it is there;
# SUITE is a newer Debian's, or `-` for this machine's own.
program() {
  local isa=$1 suite=$2 package=$3 path=$4 name=${4##*/} dir work file
  dir=$CACHE/programs/$name/$isa
  [ -e "$dir" ] && return
  install_packages binutils
  work=$(mktemp -d "$CACHE/$package.XXXXXX")
  if [ "$suite" = - ]; then
    private_apt_update
    unpack_whole "$isa" "$package" "$work/root" private_apt
  else
    newer_lists "$suite"
    unpack_whole "$isa" "$package" "$work/root" newer_apt "$suite"
  fi
  mkdir -p "$work/new/lib"
  cp "$work/root/$path" "$work/new/$name"
  cp -L "$(find "$work/root" -name 'ld-linux-*.so.[12]' | head -1)" "$work/new/loader"
  local wanted=("$work/new/$name")
  while [ ${#wanted[@]} -gt 0 ]; do
    file=${wanted[0]}
    wanted=("${wanted[@]:1}")
    for name in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(lib.*\)\]/\1/p'); do
      [ -e "$work/new/lib/$name" ] && continue
      cp -L "$(find "$work/root" -name "$name" | head -1)" "$work/new/lib/$name"
      wanted+=("$work/new/lib/$name")
    done
  done
  mkdir -p "$(dirname "$dir")"
  mv "$work/new" "$dir"
  rm -rf "$work"
}

# root ISA PACKAGE - a Debian package with all that it depends on, without what no guest reads, as an archive.
root() {
  local isa=$1 package=$2 work archive
  archive=$CACHE/roots/$package-$isa.tar
  [ -e "$archive" ] && return
  private_apt_update
  work=$(mktemp -d "$CACHE/$package.XXXXXX")
  unpack_whole "$isa" "$package" "$work/root" private_apt
  mkdir -p "$CACHE/roots"
  tar -C "$work/root" --exclude=gconv --exclude=perl5 --exclude='usr/share/*' --exclude='usr/lib/*/perl*' -cf "$archive.new" .
  mv "$archive.new" "$archive"
  rm -rf "$work"
}

for isa in ${*:-x86_64 aarch64}; do
  arch=$(debian_arch "$isa")
  for series in $series_wanted; do
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
  # Debug symbols: of each -dbg package (300 MB) only vmlinux is unpacked.
  for series in $series_wanted; do
    place=$CACHE/kernels/$isa/$series
    [ -e "$place/vmlinux" ] && continue
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
  done
  place=$CACHE/kernels/$isa/6.12
  wanted=()
  if [ -z "${VMM_SETUP_ONLY_BOOT:-}" ]; then
    [ -e "$place/gdb" ] || wanted+=(helpers)
    { [ -e "$place/wedge.ko" ] && wedge_key | cmp -s - "$place/wedge.key"; } || wanted+=(wedge)
  fi
  if [ ${#wanted[@]} -gt 0 ]; then
    release=$(cat "$place/release")
    headers=$(mktemp -d "$CACHE/headers.XXXXXX")
    unpack_headers "$isa" "$release" "$headers"
    for part in "${wanted[@]}"; do "$part" "$isa" "$place" "$release" "$headers"; done
    rm -rf "$headers"
  fi
  if [ ! -e "$CACHE/busybox/$isa/busybox" ]; then
    unpacked=$(mktemp -d "$CACHE/busybox.XXXXXX")
    unpack_deb "busybox-static:$arch" "$unpacked"
    mkdir -p "$CACHE/busybox/$isa"
    install -m 755 "$(find "$unpacked" -path '*/bin/busybox' -type f)" "$CACHE/busybox/$isa/busybox"
    rm -rf "$unpacked"
  fi
  if [ -z "${VMM_SETUP_ONLY_BOOT:-}" ]; then
    # What loads a kernel for after a crash, and what makes a network.
    program "$isa" - kexec-tools sbin/kexec
    # Debian 12's passt loses what a host sends (docs/network.md).
    program "$isa" trixie passt usr/bin/passt
    root "$isa" systemd
  fi
done
