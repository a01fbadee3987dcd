#!/usr/bin/env bash
# The local Cloud Storage server of the cloud tests, built once into the cache; a second call finds it there.
#   bash tests/cloud/install_gcs.sh
# It prints the program's path. XDG_CACHE_HOME is honoured.
set -euo pipefail
version=v1.56.1
folder=${XDG_CACHE_HOME:-$HOME/.cache}/beam_pipelines/fake-gcs-server/$version
program=$folder/fake-gcs-server

if [ -x "$program" ]; then
    echo "$program"
    exit
fi
if ! command -v go >/dev/null; then
    echo "install_gcs: no Go in PATH, with which the local Cloud Storage server is built. Install Go 1.25 or later from https://go.dev/dl, then run this again." >&2
    exit 1
fi
mkdir -p "$folder"
made=$(mktemp -d "$folder/making.XXXXXX")
trap 'rm -rf "$made"' EXIT
GOBIN=$made go install "github.com/fsouza/fake-gcs-server@$version"
mv "$made/fake-gcs-server" "$program"
echo "$program"
