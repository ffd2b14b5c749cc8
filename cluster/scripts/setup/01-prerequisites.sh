#!/usr/bin/env bash
# Checks that this machine has the tools, new enough. Changes nothing.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
    cat <<'TEXT'
usage: 01-prerequisites.sh dev|prod [--dry-run]

Checks this machine, installs nothing, and names all that is missing at once: aws 2, terraform 1.11, helm 3.19,
kubectl (at most one minor version from the cluster's), curl, python3 3.8 with PyYAML, sha256sum or shasum.
TEXT
}

MISSING=""
lacks() { MISSING="$MISSING
  $1"; }

at_least() { printf '%s\n%s\n' "$1" "$2" | sort -t . -k 1,1n -k 2,2n -C; }

# tool NAME OLDEST HOW COMMAND...: the first number with a dot in what the command prints is the version.
tool() {
    local name=$1 oldest=$2 how=$3 found
    shift 3
    if ! command -v "$name" > /dev/null; then lacks "$name $oldest or newer: $how"; return; fi
    found=$("$@" 2> /dev/null | grep -Eo '[0-9]+\.[0-9]+' | head -n 1 || true)
    at_least "$oldest" "${found:-0.0}" || lacks "$name is ${found:-of unknown version}, needed is $oldest or newer: $how"
}

begin "" "" "$@"
no_arguments
read_versions KUBERNETES_VERSION
tool aws 2.0 "https://docs.aws.amazon.com/cli/" aws --version
tool terraform 1.11 "https://developer.hashicorp.com/terraform/install" terraform version
tool helm 3.19 "https://helm.sh/docs/intro/install/" helm version --short
tool kubectl "1.$((${KUBERNETES_VERSION#1.} - 1))" "https://kubernetes.io/docs/tasks/tools/" kubectl version --client
tool python3 3.8 "https://www.python.org/downloads/" python3 --version
tool curl 7.55 "your package manager" curl --version
python3 -c 'import yaml' 2> /dev/null || lacks "PyYAML for python3: python3 -m pip install pyyaml"
command -v sha256sum > /dev/null || command -v shasum > /dev/null || lacks "sha256sum or shasum: your package manager"
[ -z "$MISSING" ] || die "this machine lacks:$MISSING"
say "this machine has all tools"
