#!/bin/sh
# Kubernetes' schemas and what checks against them, pinned, once into the cache.
set -eu
version=1.37.0
kept="${XDG_CACHE_HOME:-$HOME/.cache}/beam_pipelines/kubernetes-validate/$version"
[ -x "$kept/bin/kubernetes-validate" ] && exit 0
python -m venv --clear "$kept"
"$kept/bin/python" -m pip install --quiet --disable-pip-version-check "kubernetes-validate==$version"
"$kept/bin/kubernetes-validate" --version
