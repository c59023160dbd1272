#!/usr/bin/env bash
# The QEMU that carries the x86_64 nest: Debian's own source package of QEMU with
# qemu/*.patch on top, x86_64 system emulation only, with the devices that a nest has
# (qemu/nest.mak) and without what is found out at run time only: debug information, trace points.
# With `is-built` nothing is built, and the exit code says whether it is.
#   $CACHE/qemu/<key>/bin/qemu-system-x86_64, and $CACHE/qemu/current points to it
# docs/testing.md says what the patches mend; unmodified QEMU boots guests as well,
# but loses a guest's debug exits, and takes longer.
source "$(dirname "$0")/common.sh"
patches=("$SETUP_DIR"/qemu/*.patch)
devices=$SETUP_DIR/qemu/nest.mak
key=$(cat "${patches[@]}" "$devices" "$0" | sha256sum | cut -c1-12)
place=$CACHE/qemu/$key
[ "${1:-}" != is-built ] || exec test -x "$place/bin/qemu-system-x86_64"
lock qemu
if [ -x "$place/bin/qemu-system-x86_64" ]; then
  ln -sfn "$key" "$CACHE/qemu/current"
  exit 0
fi

install_packages dpkg-dev gcc libc6-dev make patch pkg-config python3 ninja-build meson \
  libglib2.0-dev libpixman-1-dev zlib1g-dev libfdt-dev
private_apt_update
work=$(mktemp -d "$CACHE/qemu-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "downloading QEMU's source package (24 MB)"
(cd "$work" && private_apt apt-get -q source --download-only qemu >source.log 2>&1) \
  || die "cannot download QEMU's source package: $(tail -1 "$work/source.log")"
(cd "$work" && dpkg-source --no-check -x ./*.dsc qemu >unpack.log 2>&1) \
  || die "cannot unpack QEMU's source: $(tail -1 "$work/unpack.log")"
for file in "${patches[@]}"; do
  patch -s -d "$work/qemu" -p1 < "$file" || die "$file does not apply to this QEMU"
done

cp "$devices" "$work/qemu/configs/devices/x86_64-softmmu/"

say "building QEMU's x86_64 emulation (about 2 minutes on two cores; kept for later runs)"
mkdir "$work/build"
cd "$work/build"
log=$CACHE/qemu-build.log
{ PATH=/usr/bin:/bin:$PATH ../qemu/configure --prefix="$place.new" --target-list=x86_64-softmmu \
    --without-default-features --enable-tcg --enable-system --enable-fdt=system \
    --without-default-devices --with-devices-x86_64=nest --enable-trace-backends=nop \
    --disable-debug-info --disable-docs --disable-tools --disable-werror \
    --disable-install-blobs --meson=/usr/bin/meson \
  && ninja qemu-system-x86_64; } >"$log" 2>&1 || { tail -5 "$log" >&2; die "QEMU's build failed; see $log"; }
rm -rf "$place.new" "$place"
mkdir -p "$place.new/bin"
install -s -m 755 qemu-system-x86_64 "$place.new/bin/"
mv "$place.new" "$place"
ln -sfn "$key" "$CACHE/qemu/current"
say "QEMU is built: $place"
