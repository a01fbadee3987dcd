#!/usr/bin/env bash
# The local BigQuery server of the cloud tests, once into the cache; a second call finds it there.
#   bash tests/cloud/install_bigquery.sh
# It prints the folder: `venv/` with Python 3.13, `home/` with DuckDB's extensions. XDG_CACHE_HOME is honoured.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=0.4.0
kept=${XDG_CACHE_HOME:-$HOME/.cache}/beam_pipelines/bigquery/$version
pins=$here/bigquery_requirements.txt

if cmp -s "$pins" "$kept/requirements.txt"; then
    echo "$kept"
    exit
fi

choose() {
    local candidate
    for candidate in python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "install_bigquery: no Python 3.13 in PATH or in pyenv, which the local BigQuery server needs. Run: pyenv install 3.13" >&2
    exit 1
}

python=$(choose)
mkdir -p "$(dirname "$kept")"
made=$(mktemp -d "$kept.XXXXXX")
trap 'rm -rf "$made"' EXIT
mkdir "$made/home"
"$python" -m venv "$made/venv"
# Wheels only: a source distribution would run its own build and may fetch what is not pinned here.
"$made/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r "$pins"
HOME=$made/home "$made/venv/bin/python" - <<'PYTHON'
from duckdb_extensions import import_extension

for name in ("ducklake", "icu", "avro", "httpfs", "spatial"):
    import_extension(name)
PYTHON
cp "$pins" "$made/requirements.txt"

# Another process may have been faster, or an older set of pins lies there: whoever comes last stays, and nobody sees half of one.
rm -rf "$made.old"
mv "$kept" "$made.old" 2>/dev/null || true
mv "$made" "$kept"
rm -rf "$made.old"
echo "$kept"
