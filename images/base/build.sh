#!/bin/bash
# The base image from Debian packages, without a registry: a minimal system with Python and what torch needs of it.
# The same packages give the same bits, image id included: no time, host name or order of this machine goes in.
#
#   images/base/build.sh [NAME]           NAME of the image, default pairline-base:bookworm
#   SUITE=trixie                          another release; its Python must be that of the host that gathers the wheels
#   MIRROR=http://host/debian             other mirrors; snapshots give the same packages for ever:
#   SECURITY=http://host/debian-security  MIRROR=http://snapshot.debian.org/archive/debian/20260101T000000Z, likewise SECURITY
#   COMPILER=1                            with a C and C++ compiler, for steps that compile (image.compiler); the
#                                         default NAME then ends in -compiler
#   MORE=package,package                  Debian packages beside these: ibverbs-providers for NCCL over InfiniBand
#   OUT=file.tar                          write the image to a file (for `docker load` elsewhere), load nothing
#
# Needs mmdebstrap (Debian's package; root, or a user who may unshare) and, without OUT, a Docker engine.
set -euo pipefail

SUITE="${SUITE:-bookworm}"
NAME="${1:-pairline-base:$SUITE${COMPILER:+-compiler}}"
MIRROR="${MIRROR:-http://deb.debian.org/debian}"
SECURITY="${SECURITY:-http://deb.debian.org/debian-security}"
PACKAGES=python3,ca-certificates,libgomp1,libstdc++6${COMPILER:+,g++,python3-dev}${MORE:+,$MORE}
export SOURCE_DATE_EPOCH=1735689600  # no file is younger than this (2025-01-01)

command -v mmdebstrap >/dev/null || { echo "mmdebstrap is needed: apt-get install mmdebstrap" >&2; exit 1; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/image"

# Nothing of the caller's environment takes part but its proxies: Python's variables, for one, decide what bytecode holds.
umask 022
clean=(PATH="$PATH" HOME=/root LC_ALL=C.UTF-8 TMPDIR="${TMPDIR:-/tmp}" SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH"
    PYTHONDONTWRITEBYTECODE=1)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!name:-}" ] || clean+=("$name=${!name}")
done

# Licences stay, for the list of packages; the mirror's address does not, nor apt's lists and caches.
echo "Making $NAME from Debian $SUITE ..." >&2
env -i "${clean[@]}" mmdebstrap --quiet --variant=essential --include="$PACKAGES" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/etc/resolv.conf "$1"/etc/hostname' \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    "$SUITE" "$work/image/layer.tar" "deb $MIRROR $SUITE main" "deb $SECURITY $SUITE-security main"

# An image file as `docker load` takes it. `docker import` would put the time of day into the id.
layer="$(sha256sum "$work/image/layer.tar" | cut -d' ' -f1)"
created="$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"
architecture="$(dpkg --print-architecture)"
cat > "$work/image/config.json" <<JSON
{"architecture":"$architecture","os":"linux","created":"$created",
"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8"],"Cmd":["/bin/sh"],
"Labels":{"org.opencontainers.image.title":"pairline-base","org.opencontainers.image.version":"$SUITE"}},
"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},
"history":[{"created":"$created","created_by":"mmdebstrap $SUITE $PACKAGES"}]}
JSON
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]\n' "$NAME" > "$work/image/manifest.json"
tar -C "$work/image" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=644 \
    -cf "$work/image.tar" config.json layer.tar manifest.json

echo "sha256:$(sha256sum "$work/image/config.json" | cut -d' ' -f1)"  # the image's id
if [ -n "${OUT:-}" ]; then
    mv "$work/image.tar" "$OUT"
else
    docker load --quiet --input "$work/image.tar" >&2
fi
