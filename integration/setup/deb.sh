#!/usr/bin/env bash
# Packs the static program, its manual pages and completions as Debian packages: deb.sh ISA...
#   target/debian/vmm_<version>_<arch>.deb
# `make build` has made the programs. Whoever packs them maintains the packages, and is asked as Debian's tools ask
# (dch(1)): by DEBFULLNAME and DEBEMAIL.
source "$(dirname "$0")/common.sh"
lock deb
cd "$SETUP_DIR/../.."

CARGO_DEB=3.8.0
place=$CACHE/cargo-deb/$CARGO_DEB
if [ ! -x "$place/bin/cargo-deb" ]; then
  say "building cargo-deb $CARGO_DEB (a minute or two; kept for later runs)"
  cargo install -q --locked --version "$CARGO_DEB" --debug --root "$place" cargo-deb >"$CACHE/cargo-deb.log" 2>&1 \
    || { tail -5 "$CACHE/cargo-deb.log" >&2; die "cargo-deb's build failed; see $CACHE/cargo-deb.log"; }
fi
rm -rf target/pages
cargo run -q -p guest-vmm --example pages -- target/pages
# What users notice is in our changelog; Debian's says of which version the package is (Debian policy, 12.7).
gzip -9nc CHANGELOG.md > target/pages/changelog.gz
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# Debian policy, 3.3: somebody who reads mail. The name in vmm/Cargo.toml has an address that says that there is nobody.
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' vmm/Cargo.toml)
if [ -n "${DEBEMAIL:-}" ]; then
  maintainer="${DEBFULLNAME:-${DEBEMAIL%%@*}} <$DEBEMAIL>"
else
  say "the packages name no maintainer who reads mail: set DEBFULLNAME and DEBEMAIL before handing them on"
fi
printf 'vmm (%s-1) unstable; urgency=medium\n\n  * What is new is in changelog.gz.\n\n -- %s  %s\n' \
  "$version" "$maintainer" "$(LC_ALL=C date -uRr CHANGELOG.md)" > target/pages/changelog
for isa in "$@"; do
  say "packing vmm for $isa"
  # The program is built and stripped.
  "$place/bin/cargo-deb" -q -p guest-vmm --no-build --no-strip --no-dbgsym --target "$isa-unknown-linux-musl" \
    --maintainer "$maintainer" -o target/debian/
done
ls -l target/debian/*.deb >&2
