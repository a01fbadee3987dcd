#!/usr/bin/env bash
# The PostgreSQL of the tests: Debian's package of the pinned major version. A second call finds it there.
#   bash tests/install_postgres.sh
# It prints the folder of the programs. It needs root or sudo where it is not there; no server is started, and no cluster made.
set -euo pipefail
major=15
programs=/usr/lib/postgresql/$major/bin

if [ ! -x "$programs/initdb" ]; then
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "install_postgres: neither root nor sudo. As root: apt-get install postgresql-$major" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "postgresql-$major"
fi
echo "$programs"
