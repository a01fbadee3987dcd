#!/usr/bin/env bash
# Proves on a real project what offline tests cannot know of Dataflow. It was not run by us: nobody here had a project.
#   PROJECT=my-trial REGION=europe-west3 BUCKET=my-trial-prove \
#     IMAGE=europe-west3-docker.pkg.dev/my-trial/images/beam-pipelines:1 bash deploy/dataflow/prove.sh
# The image is built and pushed before (docs/dataflow.md); BUCKET exists, for trials alone. About 40 minutes and a few machine hours of Dataflow.
# It makes a topic and two subscriptions, runs a batch by template, a stream, an update, a cancel and a next start, and removes what it made; KEEP=1 leaves it.
set -euo pipefail

refuse() { echo "prove: $*" >&2; exit 2; }
for name in PROJECT REGION BUCKET IMAGE; do
    [ -n "${!name:-}" ] || refuse "$name is not set; the first lines of $0 say what it needs"
done
for command in gcloud beam-pipelines python3; do
    command -v "$command" >/dev/null || refuse "$command is not in PATH"
done

id=prove$(date +%m%d%H%M)
top=gs://$BUCKET/$id
work=$(mktemp -d)
sub=projects/$PROJECT/subscriptions/$id
on=(--runner dataflow --project "$PROJECT" --region "$REGION" --temp-location "$top/temp" --sdk-container-image "$IMAGE" --max-workers 2 --set "lake=$top/lake")
gc() { gcloud --project "$PROJECT" --quiet "$@"; }
step() { echo; echo "=== $*"; }
fail() { echo "prove: NOT PROVED: $*" >&2; exit 1; }
until_true() { # until_true SECONDS WHAT COMMAND...
    local seconds=$1 what=$2 begin=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $((SECONDS - begin)) -lt "$seconds" ] || fail "$what, after $seconds s"
        sleep 15
    done
    echo "$what: after $((SECONDS - begin)) s"
}
job_of() { gc dataflow jobs list --region "$REGION" --filter "name=$1" --format 'value(id,state)' --limit 1; }
is() { job_of "$1" | grep -qi "$2"; }
leave() {
    local code=$?
    if [ -z "${KEEP:-}" ]; then
        for job in $(gc dataflow jobs list --region "$REGION" --status active --filter "name~^$id" --format 'value(id)'); do
            gc dataflow jobs cancel "$job" --region "$REGION" || true
        done
        gc pubsub subscriptions delete "$id" "$id-archive" || true
        gc pubsub topics delete "$id" || true
        gc storage rm -r "$top" || true
    fi
    rm -rf "$work"
    exit "$code"
}
trap leave EXIT

cat >"$work/spec.yaml" <<YAML
spec: 1
pipeline: $id
state: "\${lake}/state"
parameters: {lake: {type: path, default: "gs://$BUCKET/unused"}}
contract:
  key: [n]
  event_time: at
  columns: {n: {type: int64, required: true}, at: {type: timestamp, required: true}}
sources:
  batch:  [{files: "\${lake}/in/*.json", format: json}]
  stream: [{pubsub: $sub, format: json, archive: "\${lake}/archive"}]
deduplicate: {within: 10m}
aggregates: {by_ten: {windowing: {type: fixed, size: 10m, allowed_lateness: 5m}, measures: {n: count()}}}
sinks:
  - {from: rows,   parquet: {path: "\${lake}/rows", partition_by: [day(at)]}}
  - {from: by_ten, parquet: {path: "\${lake}/by_ten"}}
YAML
folder=$(python3 -c "from beam_pipelines.formats.archive import source_folder; print(source_folder('$id/lake/archive', '$sub'))")

step "topic, subscription that keeps what is acknowledged, archive"
gc pubsub topics create "$id"
gc pubsub subscriptions create "$id" --topic "$id" --retain-acked-messages --message-retention-duration 1d --ack-deadline 60
gc pubsub subscriptions create "$id-archive" --topic "$id" --ack-deadline 120 --cloud-storage-bucket "$BUCKET" --cloud-storage-file-prefix "$folder/" \
    --cloud-storage-file-suffix .avro --cloud-storage-output-format avro --cloud-storage-write-metadata --cloud-storage-max-duration 60s

step "batch, launched from a template, nobody waits"
python3 - >"$work/in.json" <<'PY'
import json
for n in range(1000):
    print(json.dumps({"n": n, "at": f"2013-01-0{1 + n % 3}T10:00:00Z"}))
PY
gc storage cp "$work/in.json" "$top/lake/in/a.json"
beam-pipelines template build "$work/spec.yaml" --mode batch --image "$IMAGE" --output "$top/templates/batch.json" --set "lake=$top/lake" --max-workers 2 --temp-location "$top/temp"
spec=$(gc storage ls "$top/templates/batch.spec-*.json")
gc dataflow flex-template run "$id-batch" --region "$REGION" --template-file-gcs-location "$top/templates/batch.json" --parameters "spec=$spec,run_id=b1"
until_true 1500 "the batch has ended" is "$id-batch" done
beam-pipelines runs "$work/spec.yaml" --set "lake=$top/lake" | grep -q b1 || fail "the batch committed"

step "stream"
publish() { # publish FROM TO: numbers, with the minute in which they are published
    python3 - "$PROJECT" "$id" "$1" "$2" <<'PY'
import datetime, json, sys
from google.cloud import pubsub_v1
project, topic, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = pubsub_v1.PublisherClient()
now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
for future in [client.publish(client.topic_path(project, topic), json.dumps({"n": n, "at": now}).encode()) for n in range(first, last)]:
    future.result()
PY
}
beam-pipelines run "$work/spec.yaml" --mode stream "${on[@]}" --run-id s1 --graph "$work/running.json"
beam-pipelines run "$work/spec.yaml" --mode stream "${on[@]}" --run-id s1 --no-wait
until_true 900 "the stream runs" is "$id" running
publish 0 500
stored() { [ -n "$(gc storage ls "$top/lake/rows.speed/**" 2>/dev/null)" ]; }
until_true 600 "rows are stored" stored

step "a second start is refused"
beam-pipelines run "$work/spec.yaml" --mode stream "${on[@]}" --no-wait && fail "a second stream was refused"

step "update, in the middle of a window"
sed -i 's/^sinks:/checks: [{name: small, expr: "n < 100000", severity: warn}]\nsinks:/' "$work/spec.yaml"
beam-pipelines plan "$work/spec.yaml" --against "$work/running.json" --set "lake=$top/lake"
beam-pipelines run "$work/spec.yaml" --mode stream "${on[@]}" --update --no-wait
until_true 900 "the old job is replaced" bash -c "gcloud --project $PROJECT dataflow jobs list --region $REGION --filter 'name=$id' --format 'value(state)' | grep -qi updated"
publish 500 1000

step "cancel, and a next start that completes the windows"
sleep 60
gc dataflow jobs cancel "$(job_of "$id" | cut -f 1)" --region "$REGION"
until_true 600 "the stream is cancelled" is "$id" cancelled
publish 1000 1500
beam-pipelines run "$work/spec.yaml" --mode stream "${on[@]}" --run-id s2 --no-wait
until_true 900 "the next start runs" is "$id" running
distinct() { [ "$(beam-pipelines query "$work/spec.yaml" --set "lake=$top/lake" "SELECT count(DISTINCT n) FROM rows WHERE at > now() - INTERVAL 1 DAY" 2>/dev/null | grep -oE '[0-9]+' | tail -1)" = 1500 ]; }
until_true 900 "every row is there, once" distinct

step "a batch over what Pub/Sub has archived"
archived() { [ -n "$(gc storage ls "gs://$BUCKET/$folder/**.avro" 2>/dev/null)" ]; }
until_true 300 "the archive has files" archived
beam-pipelines run "$work/spec.yaml" --mode batch --input archive "${on[@]}" --run-id a1

echo; echo "proved. Look by hand: the panes of by_ten across update and cancel (query … 'SELECT * FROM by_ten ORDER BY 1'), and messages whose arrival attribute is no time."
