#!/usr/bin/env bash
# Make the image of a systemd host once and print its name on stdout (progress goes to stderr).
#
#   testbed/image.sh [BASE]     BASE: ubuntu:24.04 (default), ubuntu:22.04, debian:12, …
#
# Where no image registry answers, the same packages come from this machine's distribution by way of mmdebstrap.
# MODELHOST_TESTBED_PACKAGES names further packages (a,b).
# The tag carries a digest of the recipe, so a changed recipe makes a new image.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=${1:-${MODELHOST_TESTBED_BASE:-ubuntu:24.04}}
packages=ca-certificates,curl,dbus,iproute2,openssl,procps,python3,python3-apt,sudo,systemd,systemd-sysv,tzdata
packages+=${MODELHOST_TESTBED_PACKAGES:+,$MODELHOST_TESTBED_PACKAGES}
recipe=$({ cat "$here/Dockerfile" "$here/image.sh" && echo "$packages"; } | sha256sum | cut -c1-12)
say() { printf '   %s\n' "$*" >&2; }

name=modelhost-testbed:${base//[:\/]/-}-$recipe
# Two scenarios may want it at the same time; the second finds it made.
mkdir -p "$here/../.cache"
exec 9>"$here/../.cache/image.lock"
flock 9
# shellcheck source=/dev/null
. /etc/os-release
case ${ID:-} in
  ubuntu) suite=${VERSION_CODENAME:-noble} ;;
  *) suite=bookworm ;;
esac
fallback=modelhost-testbed:$suite-$recipe
for image in "$name" "$fallback"; do
  if docker image inspect "$image" >/dev/null 2>&1; then
    say "image of the host: $image (made before)"
    echo "$image"
    exit 0
  fi
done

if docker image inspect "$base" >/dev/null 2>&1 || { say "pulling $base" && timeout 180 docker pull -q "$base" >&2; }; then
  say "image of the host: $name, built from $base"
  arguments=()
  for variable in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!variable:-}" ] || arguments+=(--build-arg "$variable=${!variable}")
  done
  docker build --quiet --tag "$name" --build-arg "BASE=$base" --build-arg "PACKAGES=${packages//,/ }" \
    "${arguments[@]}" "$here" >&2
  echo "$name"
  exit 0
fi

say "no image registry answers; building $fallback from this machine's package mirror instead (one to two minutes)"
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if ! command -v mmdebstrap >/dev/null; then
  say "installing mmdebstrap"
  "${as_root[@]}" apt-get update -qq >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >&2
fi
# The machine's own mirror where it serves the wanted distribution, else the public one.
mirror=()
if [ "${ID:-}" = ubuntu ] || [ "${VERSION_CODENAME:-}" = "$suite" ]; then
  own=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 2>/dev/null | awk -v suite="$suite" '$2 == suite {print $1; exit}' || true)
  [ -z "$own" ] || mirror=("$own")
fi
options=(--variant=minbase --format=tar --include="$packages" --aptopt='Acquire::Retries "3"'
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright')
[ "$suite" = bookworm ] || options+=(--components=main,universe)
proxy=$(apt-config shell p Acquire::http::Proxy 2>/dev/null || true)
[ -z "$proxy" ] || { eval "$proxy" && options+=("--aptopt=Acquire::http::Proxy \"$p\""); }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# mmdebstrap's default sources hold the updates and security suites; a mirror of one's own replaces the main one only.
if [ "${#mirror[@]}" -gt 0 ] && [ "$suite" = bookworm ]; then
  sources=("deb ${mirror[0]} $suite main" "deb ${mirror[0]} $suite-updates main" "deb http://security.debian.org/debian-security $suite-security main")
elif [ "${#mirror[@]}" -gt 0 ]; then
  sources=("deb ${mirror[0]} $suite main universe" "deb ${mirror[0]} $suite-updates main universe" "deb ${mirror[0]} $suite-security main universe")
else
  sources=()
fi
"${as_root[@]}" mmdebstrap "${options[@]}" "$suite" "$work/root.tar" "${sources[@]}" 2>&1 | grep -E '^(I|E|W):' >&2
docker import --change 'CMD ["/sbin/init"]' --change 'ENV container=docker' \
  --change 'LABEL modelhost.testbed=true' "$work/root.tar" "$fallback" >/dev/null
echo "$fallback"
