#!/usr/bin/env bash
# Proves on a real project what offline tests cannot know: that Google accepts the plan, that the rights are enough, that the jobs run, that nothing is left.
#   PROJECT=my-trial REGION=europe-west3 IMAGE=europe-west3-docker.pkg.dev/my-trial/images/beam-pipelines:1.0.0 \
#     SPEC=flights.yaml MESSAGES=departures.jsonl TABLE=flights_speed bash terraform/prove.sh
# It makes a pipeline of its own name, publishes the lines of MESSAGES, waits for the rows, runs the batch, updates the stream, and destroys all of it.
# About 40 minutes and a few machine hours of Dataflow. Take a project that is for trials. Other variables of the module: TF_VAR_name=value.
#   SPEC      has the parameters `lake` and `subscription` (or say TF_VAR_place_parameters), a stream source of JSON messages, a batch source, its state in the lake
#   TABLE     name of the table, in the dataset that is made here, in which the stream's rows arrive; without it only the archive is looked at.
#             The spec takes the dataset as a parameter: TF_VAR_place_parameters, place `dataset`
#   KEEP=1    leaves everything there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

refuse() { echo "prove: $*" >&2; exit 2; }
for name in PROJECT REGION IMAGE SPEC MESSAGES; do
    [ -n "${!name:-}" ] || refuse "$name is not set; the first lines of $0 say what it needs"
done
for file in "$SPEC" "$MESSAGES"; do
    [ -s "$file" ] || refuse "no such file, or an empty one: $file"
done
for command in terraform gcloud bq beam-pipelines; do
    command -v "$command" >/dev/null || refuse "$command is not in PATH"
done
gcloud auth application-default print-access-token >/dev/null 2>&1 || refuse "no credentials; run: gcloud auth application-default login"

name=prove-$(date +%m%d%H%M)
work=$(mktemp -d)
mkdir "$work/terraform"
# Only what belongs to the module: state or a backend of a pipeline that is really there must not come along.
cp -R "$here"/{main,variables,outputs,versions}.tf "$here/modules" "$work/terraform/"
grep -qE '^ *(backend|cloud) ' "$work"/terraform/*.tf && refuse "terraform/ names a backend; run it from a clean copy"
tf() { terraform -chdir="$work/terraform" "$@"; }
config=gs://$PROJECT-$name-config
export TF_VAR_project=$PROJECT TF_VAR_region=$REGION TF_VAR_name=$name TF_VAR_image=$IMAGE TF_VAR_deletion_protection=false
# The names of the specs have a hash and are known when the templates are built; until then, without jobs, any will do.
export TF_VAR_template_path=$config/templates/stream.json TF_VAR_spec_path=$config/templates/stream.spec.json TF_IN_AUTOMATION=1

leave() {
    local code=$?
    if [ "$code" -ne 0 ] || [ -n "${KEEP:-}" ]; then
        { export -p | grep ' TF_VAR_'; echo "terraform -chdir=$work/terraform destroy"; } >"$work/remove.sh"
        echo "prove: what was made is still there. To remove it: bash $work/remove.sh"
    fi
}
trap leave EXIT

step() { echo; echo "=== $*"; }
until_true() { # until_true SECONDS WHAT COMMAND...: asks every 15 s
    local seconds=$1 what=$2 begin=$SECONDS
    shift 2
    until "$@"; do
        [ $((SECONDS - begin)) -lt "$seconds" ] || { echo "prove: after $seconds s still not: $what" >&2; exit 1; }
        sleep 15
    done
    echo "$what: after $((SECONDS - begin)) s"
}
jobs() { gcloud dataflow jobs list --project "$PROJECT" --region "$REGION" --filter "name=$1" --format 'value(id,state)' "${@:2}"; }
job_is() { jobs "$1" | grep -qiE "[[:space:]](job_state_)?$2\$"; }
job_id() { jobs "$name-stream" | grep -iE '[[:space:]](job_state_)?running$' | head -1 | cut -f 1; }
spec_of() { gcloud storage ls "$config/templates/$1.spec-*.json" | head -1; }
archived() { [ -n "$(gcloud storage ls "gs://$PROJECT-$name-archive/raw/**" 2>/dev/null)" ]; }
rows() { bq query --project_id "$PROJECT" --use_legacy_sql=false --format csv --quiet "SELECT count(*) FROM \`$PROJECT.${name//-/_}.$TABLE\`" 2>/dev/null | tail -1; }
stored() { [ "$(rows)" -gt 0 ] 2>/dev/null; }
updated() { local now; now=$(job_id); [ -n "$now" ] && [ "$now" != "$before" ]; }

step "1. the project without jobs"
gcloud services enable cloudresourcemanager.googleapis.com serviceusage.googleapis.com --project "$PROJECT"
tf init -input=false
# Accounts and rights take up to some minutes to be known everywhere; Google's answer is then 400 or 403, and the second time it works.
tf apply -auto-approve -input=false -var deploy=false || { sleep 120 && tf apply -auto-approve -input=false -var deploy=false; }

step "2. templates and specs"
for mode in stream batch; do
    beam-pipelines template build "$SPEC" --mode "$mode" --image "$IMAGE" --output "$config/templates/$mode.json"
done
TF_VAR_spec_path=$(spec_of stream)
export TF_VAR_batch="{template_path=\"$config/templates/batch.json\",spec_path=\"$(spec_of batch)\",schedule=\"0 0 1 1 *\",paused=true}"

step "3. the jobs"
tf apply -auto-approve -input=false
until_true 900 "the stream runs, as the worker's account alone" job_is "$name-stream" Running

step "4. a second plan changes nothing"
tf plan -input=false -detailed-exitcode >"$work/plan.txt" || { cat "$work/plan.txt"; echo "prove: the plan is not empty after apply" >&2; exit 1; }

step "5. messages arrive in archive and table"
while IFS= read -r line; do
    gcloud pubsub topics publish "$name" --project "$PROJECT" --message "$line" >/dev/null
done < <(head -n 50 "$MESSAGES")
until_true 900 "raw messages are in the archive bucket" archived
[ -z "${TABLE:-}" ] || until_true 900 "rows are in $TABLE" stored

step "6. the scheduler may start the batch"
gcloud scheduler jobs resume "$name-batch" --project "$PROJECT" --location "$REGION" >/dev/null
gcloud scheduler jobs run "$name-batch" --project "$PROJECT" --location "$REGION"
until_true 1800 "the batch is done" job_is "$name-batch" Done
gcloud scheduler jobs pause "$name-batch" --project "$PROJECT" --location "$REGION" >/dev/null

step "7. the launcher sees jobs, and may not touch the archive"
launcher=$name-launcher@$PROJECT.iam.gserviceaccount.com
if jobs "$name-stream" --impersonate-service-account "$launcher" 2>/dev/null | grep -q .; then
    ! gcloud storage rm "gs://$PROJECT-$name-archive/raw/**" --impersonate-service-account "$launcher" 2>/dev/null || { echo "prove: the launcher deleted raw messages" >&2; exit 1; }
else
    echo "skipped: you may not become $launcher; say TF_VAR_launchers='[\"user:YOU\"]'"
fi

step "8. a change updates the running job in place"
before=$(job_id)
tf apply -auto-approve -input=false -var 'stream={max_workers=2,replace_running=true}'
until_true 900 "the job has a successor that runs" updated

step "9. alerts are there"
gcloud alpha monitoring policies list --project "$PROJECT" --filter "userLabels.pipeline=$name" --format 'value(displayName)' | tee "$work/alerts.txt"
[ "$(wc -l <"$work/alerts.txt")" -eq 9 ] || { echo "prove: expected nine alerts" >&2; exit 1; }

[ -z "${KEEP:-}" ] || exit 0
step "10. nothing is left"
tf destroy -auto-approve -input=false -var 'stream={max_workers=2,replace_running=true}'
[ -z "$(gcloud storage ls --project "$PROJECT" | grep -F -- "-$name-")" ] || { echo "prove: buckets are left" >&2; exit 1; }
rm -rf "$work"
echo
echo "prove: all good"
