#!/usr/bin/env bash
# asterisk_prefix.sh DIRECTORY [--relock]
#
# Unpacks Asterisk 22, its sounds, SIPp, espeak-ng and (for a test) libfaketime from Debian packages into DIRECTORY. No root, and
# the machine's own packages, lists and libraries stay as they are: a private apt fetches, dpkg-deb unpacks, and the programs start through the
# C library's loader that came with them. (Debian 12 and 13 have no asterisk package of their own; the next one has.)
#
# The packages are pinned in debian-packages.lock: only what the programs and the modules of asterisk-conf/modules.conf link
# to. When the mirror has those versions no more, its newest Asterisk 22 is taken with a warning; another major is refused.
# --relock takes the newest one and writes the list anew (needed too when a module with a new library is loaded).
#
# Interrupted, it goes on where it was; finished, it costs nothing; several at once wait for each other.
set -euo pipefail
umask 022
release=forky
roots=(asterisk asterisk-core-sounds-en-wav asterisk-moh-opsound-wav sip-tester espeak-ng libfaketime)
later_modules=(res_srtp res_crypto codec_opus_open_source)  # browsers' phones need them: their libraries are kept too
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
lock=$here/debian-packages.lock
mkdir -p "$(dirname "$1")"
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
relock=${2:-}
work=$target.work

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$1"; say "what to do: $2"; exit 1; }
wanted() { { echo layout 2; cat "$lock"; } | sha256sum | cut -d' ' -f1; }
finished() { [ -z "$relock" ] && [ "$(cat "$target/.complete" 2>/dev/null)" = "$(wanted)" ]; }
unpack() { dpkg-deb -x "$1" "$target.new" || fail "$1 cannot be unpacked" "make sure that the disk is not full, then run it again"; }
again="check the network and the disk, then run the same command again: it goes on where it was"
reason() { { grep 'Failed to fetch' "$work/log" || cat "$work/log"; } | tail -n 1 | sed 's/^[EW]: //'; }

finished && exit 0
for tool in apt-get apt-config apt-cache dpkg dpkg-deb flock sha256sum; do
  command -v "$tool" >/dev/null || fail "$tool is missing" "run the set-up on Debian 12 or 13 (a container will do)"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || fail "$keyring is missing" "apt-get install debian-archive-keyring"
exec 9>"$target.lock"
flock -n 9 || { say "another set-up is at work here; waiting for it"; flock 9; }
finished && exit 0
free=$(df -Pk "$(dirname "$target")" | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge 700 ] || fail "only $free MB are free in $(dirname "$target"), 700 are needed" "free some disk, or move the checkout to a larger one"
architecture=$(dpkg --print-architecture)

# A private apt. Of this machine's configuration it takes only how to reach a mirror (proxy, certificates): no hooks, which
# would need root, no cache, no lists, no package database.
mkdir -p "$work"/{lists/partial,cache/archives/partial,pinned,empty}
: > "$work/status"
: > "$work/log"
{
  apt-config dump Acquire | grep -v '^Acquire::\(IndexTargets\|Languages\|Retries\)'
  cat <<CONF
Acquire::Languages "none";
Acquire::Retries "3";
APT::Architecture "$architecture";
APT::Architectures "$architecture";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Dir::Etc::Parts "$work/empty";
Dir::Etc::Main "/dev/null";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "$work/empty";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$work/empty";
Dir::State "$work";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "$work";
CONF
} > "$work/apt.conf"
private() { APT_CONFIG=$work/apt.conf "$@" 2>>"$work/log"; }

# The mirror is one that this machine already uses: the first whose lists Debian has signed.
mapfile -t mirrors < <(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
                       awk '$3 == "main" && $2 !~ /security/ && !seen[$1]++ {print $1}')
[ ${#mirrors[@]} -gt 0 ] || fail "this machine has no Debian mirror in /etc/apt" "add one, as its installer would"
say "fetching Asterisk and what it needs from Debian (about 80 MB, once)"
for mirror in "${mirrors[@]}"; do
  echo "deb [signed-by=$keyring] $mirror $release main" > "$work/sources.list"
  if private apt-get -qq update; then fetched=yes; break; fi
done
[ -n "${fetched:-}" ] || fail "Debian's package lists cannot be fetched: $(reason)" "$again"

pinned() { awk -v a="$architecture" '!/^#/ && ($3 == a || $3 == "all")' "$lock"; }
fetch_pinned() {  # 1: the mirror has them no more
  local -a versions
  mapfile -t versions < <(pinned | awk '{print $1 "=" $2}')
  [[ " ${versions[*]}" == *" asterisk="* ]] || { echo "E: it is not for $architecture" >> "$work/log"; return 1; }
  if ! (cd "$work/pinned" && private apt-get -qq download "${versions[@]}"); then
    grep -q '^E: \(Version .* was not found\|Unable to locate\)' "$work/log" || fail "the packages cannot be fetched: $(reason)" "$again"
    return 1
  fi
  local name version sum rest
  while read -r name version rest sum; do
    local file=$work/pinned/${name}_${version/:/%3a}_$rest.deb
    echo "$sum  $file" | sha256sum --status --check - ||
      { rm -f "$file"; fail "$name $version is not the pinned file" "run it again; if it says so twice, do not trust the mirror"; }
    echo "$file"
  done < <(pinned) > "$work/files"
}
fetch_newest() {
  version=$(private apt-cache policy asterisk | awk '$1 == "Candidate:" {print $2}')
  [[ $version == 1:22.* ]] || fail "the mirror's Asterisk for $architecture is ${version:-none}; callrouter needs 22" \
    "use a newer callrouter, or a mirror that has Asterisk 22 in $release"
  private apt-get -qq autoclean
  private apt-get -qq install -y --download-only "${roots[@]}" >/dev/null || fail "the packages cannot be fetched: $(reason)" "$again"
  printf '%s\n' "$work"/cache/archives/*.deb > "$work/files"
}
if [ -n "$relock" ]; then
  fetch_newest
elif ! fetch_pinned; then
  say "WARNING: the mirror does not have all of tools/debian-packages.lock: $(sed -n "s/^E: //p" "$work/log" | paste -sd ' ')"
  fetch_newest
  say "WARNING: its newest packages are taken, which nobody has tried with this callrouter: Asterisk $version"
fi

rm -rf "$target.new"
mkdir -p "$target.new/bin"
while read -r deb; do unpack "$deb"; done < "$work/files"
rm -rf "$target.new"/usr/share/{man,locale,info,lintian,bug,bash-completion,doc,zoneinfo}
ln -sfn en_US_f_Allison "$target.new/usr/share/asterisk/sounds/en"
libraries=$(cd "$target.new" && echo usr/lib/*-linux-gnu*)
loader=$(cd "$target.new" && echo "$libraries"/ld-linux*.so.*)
for tool in sbin/asterisk bin/sipp bin/espeak-ng; do
  cat > "$target.new/bin/${tool##*/}" <<WRAP
#!/bin/sh
# The process becomes the program: its pid is the program's own.
p=\$(readlink -f "\$0") && p=\${p%/bin/*}
export ESPEAK_DATA_PATH="\$p/$libraries"
exec "\$p/$loader" --argv0 ${tool##*/} --library-path "\$p/$libraries:\$p/$libraries/pulseaudio" "\$p/usr/$tool" "\$@"
WRAP
  chmod +x "$target.new/bin/${tool##*/}"
done
"$target.new/bin/asterisk" -V >/dev/null && "$target.new/bin/espeak-ng" --version >/dev/null ||
  fail "the unpacked programs do not start on this machine" "run the set-up on Debian 12 or 13, amd64"

if [ -n "$relock" ]; then  # keep the packages that the programs and modules link to, and the programs' own
  cd "$target.new"
  mapfile -t modules < <(sed -n 's/^\(require\|load\) *= *\([a-z0-9_]*\).so.*/\2/p' "$here/../asterisk-conf/modules.conf")
  needed=$(for object in usr/sbin/asterisk usr/bin/sipp usr/bin/espeak-ng \
                         $(printf "$libraries/asterisk/modules/%s.so " "${modules[@]}" "${later_modules[@]}"); do
    "$loader" --library-path "$libraries:$libraries/pulseaudio" --list "$object" | awk '$3 ~ /^usr/ {print $3}'
  done | sort -u | xargs readlink -f | sed "s#^$(pwd -P)/##" | sort -u)
  {
    echo "# name version architecture sha256 of the packages that asterisk_prefix.sh unpacks; written by its --relock"
    while read -r deb; do
      read -r name version of < <(dpkg-deb --showformat '${Package} ${Version} ${Architecture}\n' -W "$deb")
      case $name in asterisk | asterisk-modules | asterisk-core-sounds-en* | asterisk-moh-* | sip-tester | espeak-ng* | libfaketime) keep=yes ;;
        *) keep=$(dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's#^\./##' | grep -Fxm1 -f <(echo "$needed") || true) ;;
      esac
      [ -z "$keep" ] || echo "$name $version $of $(sha256sum "$deb" | cut -d' ' -f1)"
    done < "$work/files" | sort
  } > "$work/lock"
  mv "$work/lock" "$lock"
  rm -rf "$target.new"
  say "wrote $lock ($(grep -vc '^#' "$lock") packages); run me without --relock to unpack them"
  exit 0
fi

wanted > "$target.new/.complete"
rm -rf "$target.old"
[ ! -e "$target" ] || mv "$target" "$target.old"
mv "$target.new" "$target"
rm -rf "$target.old" "$work"
say "unpacked $("$target/bin/asterisk" -V)"
