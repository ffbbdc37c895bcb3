#!/usr/bin/env bash
# asterisk_prefix.sh DIRECTORY [--relock]
#
# Unpacks Asterisk 22, its sounds, SIPp and espeak-ng from Debian packages into DIRECTORY. No root, nothing outside DIRECTORY
# is touched: a private apt with its own lists and an empty package database resolves everything down to the C library, and
# the programs start through that library's own loader. (Debian 12 and 13 have no asterisk package of their own.)
#
# The packages are pinned in debian-packages.lock (name, version, architecture, sha256). When the mirror has the pinned ones
# no more, its newest Asterisk 22 is taken with a warning; another major is refused. --relock writes the list anew.
# Interrupted, it starts again where it was; finished, it costs nothing; several at once wait for each other.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lock=$here/debian-packages.lock
mkdir -p "$(dirname "$1")"
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
self=$here/$(basename "$0")
fingerprint() { { cat "$self" "$lock" 2>/dev/null || true; } | sha256sum | cut -d' ' -f1; }
wanted=$(fingerprint)

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$1"; say "what to do: $2"; exit 1; }
complete() { [ "$(cat "$target/.complete" 2>/dev/null)" = "$wanted" ]; }

if [ "${2:-}" != --relock ]; then complete && exit 0; fi
for tool in apt-get dpkg-deb flock sha256sum; do
  command -v "$tool" >/dev/null || fail "$tool is missing" "use Debian 12 or 13, or set ASTERISK to an installed Asterisk (22.10 or newer)"
done
exec 9>"$target.lock"
flock 9
if [ "${2:-}" != --relock ]; then complete && exit 0; fi
free=$(df -Pk "$(dirname "$target")" | awk 'NR==2 {print int($4/1024)}')
[ "$free" -ge 900 ] || fail "only $free MB are free, 900 are needed" "free some disk, or put the checkout on a larger one"

work=$target.apt
mkdir -p "$work"/lists/partial "$work"/archives/partial
: > "$work/status"
# The mirror is the one that this machine already uses.
mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | awk '!/security/' | head -n 1)
[ -n "$mirror" ] || mirror=$(grep -rhoP '(?<=^URIs: )\S+' /etc/apt/sources.list.d 2>/dev/null | grep -v security | head -n 1 || true)
[ -n "$mirror" ] || fail "this machine has no Debian mirror configured" "add one to /etc/apt/sources.list.d and run apt-get update"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" > "$work/sources.list"
apt=(apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Etc::SourceList="$work/sources.list"
     -o Dir::Etc::SourceParts=/dev/null -o Dir::Cache::archives="$work/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
     -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 -o Acquire::Retries=3)
roots=(asterisk asterisk-core-sounds-en-wav asterisk-moh-opsound-wav sip-tester espeak-ng)
download() { "${apt[@]}" install -y --no-install-recommends --download-only "$@" 2>>"$work/log"; }

say "fetching Asterisk and what it needs (about 150 MB, once)"
: > "$work/log"
"${apt[@]}" update 2>>"$work/log" || fail "the package lists cannot be fetched: $(tail -n 1 "$work/log")" "check the network, then run the same command again"
mapfile -t pinned < <(awk '!/^#/ {print $1 "=" $2}' "$lock" 2>/dev/null)
if [ "${2:-}" = --relock ] || [ ${#pinned[@]} -eq 0 ]; then
  pinned=()
  download "${roots[@]}" || fail "the packages cannot be fetched: $(tail -n 1 "$work/log")" "check the network and the disk, then run it again"
elif ! download "${pinned[@]}"; then
  say "WARNING: the mirror has the pinned packages no more; taking its newest ones (see tools/debian-packages.lock)"
  pinned=()
  download "${roots[@]}" || fail "the packages cannot be fetched: $(tail -n 1 "$work/log")" "check the network and the disk, then run it again"
fi
version=$("${apt[@]}" -s install --no-install-recommends asterisk 2>/dev/null | awk '$1 == "Inst" && $2 == "asterisk" {gsub(/[()]/, "", $3); print $3}')
[ ${#pinned[@]} -gt 0 ] && version=$(awk '$1 == "asterisk" {print $2}' "$lock")
[[ $version == 1:22.* ]] || fail "the mirror has Asterisk ${version:-of no version}; callrouter needs 22" "set ASTERISK to an installed Asterisk 22.10 or newer"

rm -rf "$target.new"
mkdir -p "$target.new"
listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
for deb in "$work"/archives/*.deb; do
  read -r name file_version architecture < <(dpkg-deb --showformat '${Package} ${Version} ${Architecture}\n' -W "$deb")
  sum=$(sha256sum "$deb" | cut -d' ' -f1)
  if [ ${#pinned[@]} -gt 0 ]; then
    line=$(awk -v n="$name" '$1 == n' "$lock")
    [ "$line" = "$name $file_version $architecture $sum" ] || { case $line in "$name $file_version "*)
      rm -f "$deb"; fail "$name is not the pinned file (sha256 $sum)" "run it again; if it says so twice, the mirror is not to be trusted";; esac; continue; }
  fi
  echo "$name $file_version $architecture $sum" >> "$listed"
  dpkg-deb -x "$deb" "$target.new"
done
if [ "${2:-}" = --relock ]; then
  { echo "# name version architecture sha256: what tools/asterisk_prefix.sh unpacks. Written by it (--relock)."; sort "$listed"; } > "$lock"
  wanted=$(fingerprint)
fi
rm -rf "$target.new"/usr/share/{man,locale,info,lintian,bug,bash-completion} "$target.new"/usr/share/doc
ln -sfn en_US_f_Allison "$target.new/usr/share/asterisk/sounds/en"
mkdir -p "$target.new/bin"
library=$(cd "$target.new/usr/lib" && ls -d *-linux-gnu | head -n 1)
loader=$(cd "$target.new" && ls usr/lib/"$library"/ld-linux-*.so.* | head -n 1)
for tool in sbin/asterisk bin/sipp bin/espeak-ng; do
  cat > "$target.new/bin/${tool##*/}" <<WRAP
#!/bin/sh
p=\${0%/bin/*}
export ESPEAK_DATA_PATH="\$p/usr/lib/$library"
exec "\$p/$loader" --argv0 ${tool##*/} --library-path "\$p/usr/lib/$library:\$p/usr/lib/$library/pulseaudio" "\$p/usr/$tool" "\$@"
WRAP
  chmod +x "$target.new/bin/${tool##*/}"
done
"$target.new/bin/asterisk" -V >/dev/null || fail "the unpacked Asterisk does not start" "this machine's architecture may not be supported; set ASTERISK to an installed one"
echo "$wanted" > "$target.new/.complete"
rm -rf "$target"
mv "$target.new" "$target"
rm -rf "$work"
say "unpacked $("$target/bin/asterisk" -V)"
