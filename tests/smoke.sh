#!/usr/bin/env bash
# The package as a user gets it: installed from its version ranges on another Python than the tests', then one small job.
#   bash tests/smoke.sh [PYTHON]
# Without PYTHON the newest of 3.13 and 3.12 that is found, in PATH or in pyenv; where there is neither, the one that runs the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

choose() {
    local candidate
    for candidate in "$@" python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python python3.12 "$HOME"/.pyenv/versions/3.12.*/bin/python python3.11 python3; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "smoke: no Python 3.11 to 3.13 found" >&2
    exit 1
}

python=$(choose "$@")
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "smoke: $("$python" --version) ($python)"

# A copy, so that building leaves nothing in the tree.
mkdir "$work/source"
cp -R beam_pipelines pyproject.toml setup.py README.md LICENSE "$work/source/"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work/source"
"$work/venv/bin/python" -m pip check

cd "$work" # the tree itself must not be importable
export PATH="$work/venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
python - "$here" <<'PYTHON'
import sys
from pathlib import Path

import beam_pipelines

where = Path(beam_pipelines.__file__)
assert not where.is_relative_to(sys.argv[1]), where
assert where.with_name("py.typed").exists(), "py.typed is not in the package"
assert "apache_beam" not in sys.modules, "import beam_pipelines loads Beam"
PYTHON

mkdir data
printf 'id,at,amount\n1,2024-05-01T10:00:00Z,9.50\n2,2024-05-01T10:30:00Z,abc\n3,2024-05-02T11:00:00Z,12.25\n3,2024-05-02T11:00:00Z,12.25\n' >data/orders.csv
cat >orders.yaml <<'YAML'
spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  columns:
    id:     {type: int64, required: true}
    at:     {type: timestamp, required: true}
    amount: {type: "decimal(12,2)"}
sources:
  batch: [{files: "data/*.csv", format: csv}]
deduplicate: {within: 1d}
sinks:
  - {from: rows, parquet: {path: out/rows, partition_by: [day(at)]}}
  - {from: dead_letters, parquet: {path: out/dead_letters}}
YAML
beam-pipelines --version
beam-pipelines validate orders.yaml
beam-pipelines run orders.yaml
answer=$(beam-pipelines query orders.yaml "SELECT (SELECT count(*) FROM rows) AS good, (SELECT count(*) FROM dead_letters) AS bad, (SELECT sum(amount) FROM rows) AS total" --format csv | tr -d '\r' | tail -n 1)
if [ "$answer" != "2,1,21.75" ]; then
    echo "smoke: expected 2,1,21.75 from the query; got $answer" >&2
    exit 1
fi
echo "smoke: good"
