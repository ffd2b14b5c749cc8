#!/usr/bin/env bash
# Checks that AWS knows you and that the account has what the platform needs. Reads only, and stores nothing.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
    cat <<'TEXT'
usage: 00-credentials.sh dev|prod [--dry-run]

Checks, and changes nothing: the account is that of the settings, the certificate is issued for *.DOMAIN, the region has
the version of Kubernetes, and the quota is enough for the GPU spot nodes. Sign in before: aws sso login.
TEXT
}

check_keys() {
    if [ -n "${AWS_SECRET_ACCESS_KEY:-}" ] && [ -z "${AWS_SESSION_TOKEN:-}" ]; then
        say "warning: your shell holds a long-lived access key; a sign-in that expires is safer: aws sso login"
    fi
}

check_certificate() {
    local found state names
    found=$(aws acm describe-certificate --certificate-arn "$CERTIFICATE_ARN" --query Certificate --output json) \
        || die "CERTIFICATE_ARN '$CERTIFICATE_ARN' is not to be found in $AWS_REGION: request one for *.$DOMAIN there (aws acm request-certificate)"
    state=$(printf '%s' "$found" | json Status)
    names=$(printf '%s' "$found" | json SubjectAlternativeNames)
    [ "$state" = ISSUED ] || die "the certificate is $state, not ISSUED: enter its validation record in the DNS of $DOMAIN"
    case $names in *"\"*.$DOMAIN\""*) ;; *) die "the certificate is for $names, not for *.$DOMAIN: request another, or correct DOMAIN" ;; esac
}

check_kubernetes() {
    local versions
    versions=$(aws eks describe-cluster-versions --query 'clusterVersions[].clusterVersion' --output text)
    case " $(printf '%s' "$versions" | tr '\t\n' '  ') " in
        *" $KUBERNETES_VERSION "*) ;;
        *) die "EKS in $AWS_REGION has no Kubernetes $KUBERNETES_VERSION (it has: $(printf '%s' "$versions" | tr '\t\n' '  ')): change KUBERNETES_VERSION in cluster/versions.env" ;;
    esac
}

# A GPU node has 4 cores (g6.xlarge) and the quota counts cores.
check_quota() {
    local cores need=$((${GPU_NODES_MAX:-5} * 4))
    cores=$(aws service-quotas get-service-quota --service-code ec2 --quota-code L-3819A6DF --query Quota.Value --output text 2> /dev/null || echo 0)
    [ "${cores%%.*}" -ge "$need" ] \
        || say "warning: the quota 'All G and VT Spot Instance Requests' is $cores cores, ${GPU_NODES_MAX:-5} GPU nodes need $need: ask AWS for more (code L-3819A6DF)"
}

begin "" "aws python3" "$@"
no_arguments
read_versions KUBERNETES_VERSION
check_keys
need_account
check_certificate
check_kubernetes
check_quota
say "signed in to account $AWS_ACCOUNT_ID, which is ready for $CLUSTER"
