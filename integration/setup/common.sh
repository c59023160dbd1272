# Sourced by the set-up scripts: where the cache is, how progress is shown, and
# apt with lists of its own.
#
# The cache lives outside the work tree so that a clean clone finds it again.
# VMM_TEST_CACHE overrides the place; everything in it can be deleted at any time.
set -euo pipefail

CACHE=${VMM_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm-test}
SETUP_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$CACHE/tools"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# lock PART - only one set-up at a time may fill a part of the cache. The lock, of which $LOCK is the
# descriptor, goes with the process.
lock() {
  exec {LOCK}>"$CACHE/.lock-$1"
  flock -w 1800 "$LOCK" || die "another set-up has held $CACHE/.lock-$1 for half an hour"
}

# locked PART COMMAND... - the same for one command.
locked() {
  local LOCK
  lock "$1"
  "${@:2}"
  exec {LOCK}>&-
}

# The apt lists of the machine may lack arm64 and sources; ours have amd64,
# arm64 and deb-src, made from the Debian entries that the machine is set up with.
APT_ROOT=$CACHE/apt
private_apt_config() {
  local file sources=$APT_ROOT/sources.new
  mkdir -p "$APT_ROOT"/{lists/partial,archives/partial,sources.d,preferences.d}
  rm -rf "$sources"
  mkdir "$sources"
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] || continue
    grep -q 'debian-archive-keyring\|^Suites:.*bookworm' "$file" || continue
    sed 's/^Types:.*/Types: deb deb-src/; /^Architectures:/d' "$file" > "$sources/$(basename "$file")"
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -e "$file" ] || continue
    grep -E '^deb +(\[[^]]*\] *)?[^ ]+ +bookworm' "$file" | grep -v 'cloud-sdk' \
      | sed -E 'p; s/^deb /deb-src /' > "$sources/$(basename "$file" .list)-copy.list" || true
  done
  # Another script may be reading them.
  if diff -rq "$sources" "$APT_ROOT/sources.d" >"$APT_ROOT/diff" && [ -e "$APT_ROOT/apt.conf" ]; then
    rm -rf "$sources"
    return
  fi
  rm -rf "$APT_ROOT/sources.d"
  mv "$sources" "$APT_ROOT/sources.d"
  cat > "$APT_ROOT/apt.conf" <<CONF
APT::Architectures { "amd64"; "arm64"; };
Dir::State::lists "$APT_ROOT/lists";
Dir::Cache::archives "$APT_ROOT/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$APT_ROOT/sources.d";
Acquire::Retries "3";
APT::Sandbox::User "root";
CONF
}

# read_lists - the lists of packages, where ours are half a day old.
read_lists() {
  private_apt_config
  if [ -n "$(find "$APT_ROOT/lists" -maxdepth 1 -name '*Packages*' -mmin -720 -print -quit)" ]; then return; fi
  say "reading Debian's package lists (amd64, arm64, sources)"
  APT_CONFIG=$APT_ROOT/apt.conf apt-get -q update >"$APT_ROOT/update.log" 2>&1 \
    || die "apt-get update failed; see $APT_ROOT/update.log"
}

private_apt_update() {
  [ -n "${PRIVATE_APT_READY:-}" ] && return
  locked apt read_lists
  PRIVATE_APT_READY=1
}

private_apt() { APT_CONFIG=$APT_ROOT/apt.conf "$@"; }

# unpack_deb PACKAGE:ARCH DIR - downloads one Debian package and unpacks it to DIR.
unpack_deb() {
  local package=$1 dir=$2 work
  private_apt_update
  work=$(mktemp -d "$CACHE/deb.XXXXXX")
  say "downloading $package"
  if ! (cd "$work" && private_apt apt-get -q download "$package" >apt.log 2>&1); then
    cat "$work/apt.log" >&2
    rm -rf "$work"
    die "cannot download the Debian package $package"
  fi
  mkdir -p "$dir"
  dpkg-deb -x "$work"/*.deb "$dir"
  rm -rf "$work"
}

debian_arch() { case $1 in x86_64) echo amd64 ;; aarch64) echo arm64 ;; esac; }

# unpack_whole ISA PACKAGE DIR APT... - downloads a Debian package with all that it depends on, by the apt
# of the last words, and unpacks everything to DIR.
unpack_whole() {
  local isa=$1 package=$2 dir=$3 arch work deb
  shift 3
  arch=$(debian_arch "$isa")
  work=$(mktemp -d "$CACHE/whole.XXXXXX")
  mkdir -p "$dir" "$work/archives/partial"
  : > "$work/status"
  say "downloading $package for $isa, with what it depends on"
  "$@" apt-get -q -y --no-install-recommends --download-only -o "APT::Architecture=$arch" \
    -o "APT::Architectures=$arch" -o "Dir::State::status=$work/status" \
    -o "Dir::Cache::archives=$work/archives" install "$package" >"$work/apt.log" 2>&1 \
    || { tail -5 "$work/apt.log" >&2; die "cannot download the Debian package $package"; }
  for deb in "$work"/archives/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  rm -rf "$work"
}

# newer_lists SUITE - reads the lists of a newer Debian alone, from where the machine has its Debian from.
newer_lists() { locked "apt-$1" read_newer_lists "$1"; }
read_newer_lists() {
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

# newer SUITE ISA PACKAGE PROGRAM - a program of a newer Debian with all that it depends on. The caller has the lock of
# the tools.
newer() {
  local suite=$1 isa=$2 package=$3 program=$4 loader emulator work
  local place=$CACHE/tools/$program-$suite-$isa
  [ -e "$place/run" ] && return
  case $isa in
    x86_64) loader=ld-linux-x86-64.so.2 emulator= ;;
    aarch64) loader=ld-linux-aarch64.so.1 emulator=qemu-aarch64-static ;;
  esac
  [ "$isa" != "$(uname -m)" ] || emulator=
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

# install_packages PACKAGE... - from the machine's own apt, only what is missing.
install_packages() { locked dpkg install_missing "$@"; }

install_missing() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" = 0 ] || die "Debian packages are missing; this installs them: sudo apt-get install --no-install-recommends ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  mkdir -p "$CACHE"
  { apt-get -q update && DEBIAN_FRONTEND=noninteractive \
      apt-get -q install -y --no-install-recommends "${missing[@]}"; } >"$CACHE/apt-install.log" 2>&1 \
    || { tail -5 "$CACHE/apt-install.log" >&2; die "apt-get install failed; see $CACHE/apt-install.log"; }
}
