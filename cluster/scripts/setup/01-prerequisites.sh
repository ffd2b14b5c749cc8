#!/usr/bin/env bash
# Checks that this machine has the tools, new enough, and that the pinned charts are to be had. Changes nothing.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/helm.sh
. "$SCRIPTS_DIR/lib/helm.sh"

usage() {
    cat <<'TEXT'
usage: 01-prerequisites.sh dev|prod [--dry-run]

Checks this machine, installs nothing, and names all that is missing at once: aws 2, terraform 1.11, helm 3.19,
kubectl (at most one minor version from the cluster's), curl, python3 3.8 with PyYAML, sha256sum or shasum. Then asks for
each chart of cluster/versions.env, before anything costs money.
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

# kubectl may be one minor version older or newer than the cluster. Sets nothing where there is none: tool has said so.
check_skew() {
    local minor
    minor=$(kubectl version --client 2> /dev/null | grep -Eo 'v1\.[0-9]+' | head -n 1) || return 0
    [ "${minor#v1.}" -le "$1" ] || lacks "kubectl is 1.${minor#v1.}, at most 1.$1 goes with the cluster: https://kubernetes.io/docs/tasks/tools/"
}

check_charts() {
    local prefix
    for prefix in $(sed -n 's/_CHART_VERSION=.*//p' "$CLUSTER_DIR/versions.env" | sort -u); do
        find_chart "$(printf '%s' "$prefix" | tr 'A-Z_' 'a-z-')"
        helm show chart "${CHART[@]}" > /dev/null 2> "$SCRATCH/chart" \
            || die "chart ${CHART[*]} cannot be read ($(tail -n 1 "$SCRATCH/chart")): correct ${prefix}_CHART_VERSION in cluster/versions.env"
    done
}

begin "" "" "$@"
no_arguments
read_versions KUBERNETES_VERSION
tool aws 2.0 "https://docs.aws.amazon.com/cli/" aws --version
tool terraform 1.11 "https://developer.hashicorp.com/terraform/install" terraform version
tool helm 3.19 "https://helm.sh/docs/intro/install/" helm version --short
tool kubectl "1.$((${KUBERNETES_VERSION#1.} - 1))" "https://kubernetes.io/docs/tasks/tools/" kubectl version --client
check_skew "$((${KUBERNETES_VERSION#1.} + 1))"
tool python3 3.8 "https://www.python.org/downloads/" python3 --version
tool curl 7.55 "your package manager" curl --version
python3 -c 'import yaml' 2> /dev/null || lacks "PyYAML for python3: python3 -m pip install pyyaml"
command -v sha256sum > /dev/null || command -v shasum > /dev/null || lacks "sha256sum or shasum: your package manager"
[ -z "$MISSING" ] || die "this machine lacks:$MISSING"
$DRY_RUN || check_charts
say "this machine has all tools, and the charts are to be had"
