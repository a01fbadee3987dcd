#!/bin/sh
# What the image starts: Beam's boot program for a worker, which is told where its runner is; the command, as a user without rights, for everybody else.
# A flex template's launcher replaces this entry point by its own.
boot="${BEAM_BOOT:-/opt/apache/beam/boot}"
for word in "$@"; do
    case "$word" in
    --worker_pool | --worker_pool=* | --id=* | --logging_endpoint=* | --artifact_endpoint=* | --provision_endpoint=* | --control_endpoint=*)
        exec "$boot" "$@"
        ;;
    --) break ;; # what follows are Beam options of the command
    esac
done
if [ "$(id -u)" = 0 ] && [ -z "${BEAM_PIPELINES_ROOT:-}" ]; then
    export HOME=/home/beam
    exec setpriv --reuid=10001 --regid=10001 --clear-groups beam-pipelines "$@"
fi
exec beam-pipelines "$@"
