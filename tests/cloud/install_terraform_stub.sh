#!/usr/bin/env bash
# What `terraform validate` and `terraform test` need of Google's providers, once into the cache; a second call finds it there.
#   bash tests/cloud/install_terraform_stub.sh
# It prints the folder: `schemas/`, `venv/`, `mirror/` with one start script per provider, and `terraform.rc` for TF_CLI_CONFIG_FILE. XDG_CACHE_HOME is
# honoured. Terraform itself (1.11 or newer) is not installed by this: https://developer.hashicorp.com/terraform/install
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=6.50.0 # of the providers: terraform_schemas.py
kept=${XDG_CACHE_HOME:-$HOME/.cache}/beam_pipelines/terraform/$version
pins="cffi==2.1.1 cryptography==50.0.2 grpcio==1.85.3 msgpack==1.2.4 protobuf==5.29.6 pycparser==3.12 tf==1.2.0 typing_extensions==4.16.0"
wheels="cdktf-cdktf-provider-google==16.12.1 cdktf-cdktf-provider-google-beta==16.12.1"
made_from() { cat "$here/install_terraform_stub.sh" "$here/terraform_schemas.py" "$here/terraform_provider.py"; }

if made_from | cmp -s - "$kept/made_from"; then
    echo "$kept"
    exit
fi

choose() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 "$HOME"/.pyenv/versions/3.1[123].*/bin/python; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "install_terraform_stub: no Python 3.11 to 3.13 found. Install one, or name it: PYTHON=/path/to/python3.11" >&2
    exit 1
}

python=$(choose)
mkdir -p "$(dirname "$kept")"
made=$(mktemp -d "$kept.XXXXXX")
downloads=$(mktemp -d)
trap 'rm -rf "$made" "$downloads"' EXIT
mkdir "$made/schemas"
"$python" -m venv "$made/venv"
# Wheels only: a source distribution would run its own build and may fetch what is not pinned here.
"$made/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $pins
"$made/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$downloads" $wheels
"$made/venv/bin/python" "$here/terraform_schemas.py" "$downloads" "$made/schemas"
cp "$here/terraform_provider.py" "$made/provider.py"

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux_amd64 ;;
    Linux-aarch64) platform=linux_arm64 ;;
    Darwin-arm64) platform=darwin_arm64 ;;
    Darwin-x86_64) platform=darwin_amd64 ;;
    *) echo "install_terraform_stub: no name for $(uname -sm) in Terraform's words" >&2 && exit 1 ;;
esac
for provider in google google-beta; do
    folder=$made/mirror/registry.terraform.io/hashicorp/$provider/$version/$platform
    mkdir -p "$folder"
    script=$folder/terraform-provider-${provider}_v$version
    printf '#!/bin/sh\nexec "%s/venv/bin/python" "%s/provider.py" %s "%s/schemas/%s.json"\n' "$kept" "$kept" "$provider" "$kept" "$provider" >"$script"
    chmod +x "$script"
done
cat >"$made/terraform.rc" <<RC
provider_installation {
  filesystem_mirror {
    path    = "$kept/mirror"
    include = ["registry.terraform.io/hashicorp/*"]
  }
}
disable_checkpoint = true
RC
made_from >"$made/made_from"

# Another process may have been faster, or an older one lies there: whoever comes last stays, and nobody sees half of one.
rm -rf "$made.old"
mv "$kept" "$made.old" 2>/dev/null || true
mv "$made" "$kept"
rm -rf "$made.old"
echo "$kept"
