#!/usr/bin/env bash
# Checks that AWS knows you and that the account has what the platform needs. Reads only, and stores nothing.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
    cat <<'TEXT'
usage: 00-credentials.sh dev|prod [--dry-run]

Checks, and changes nothing: the account is that of the settings, the certificate is issued for *.DOMAIN, the region has
the version of Kubernetes and the types of the nodes, and the quotas are enough. Sign in before: aws sso login.
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

# Of the types of GPU nodes one is enough.
check_types() {
    local offered type
    offered=$(aws ec2 describe-instance-type-offerings --query 'InstanceTypeOfferings[].InstanceType' --output text | tr '\t\n' '  ')
    for type in $CPU_TYPE $NAT_TYPE; do
        case " $offered " in
            *" $type "*) ;;
            *) die "$AWS_REGION offers no $type, which the $(profile) profile is made of: take another region, or change terraform/locals.tf" ;;
        esac
    done
    for type in $GPU_TYPES; do
        case " $offered " in *" $type "*) return ;; esac
    done
    say "warning: $AWS_REGION offers none of $GPU_TYPES: nothing will train on a GPU there"
}

# The profile as 02-aws.sh will take it.
profile() { echo "${PROFILE:-$(sed -n 's/^profile *= *"\(.*\)"/\1/p' "$(dirname "$CLUSTER_DIR")/terraform/envs/$ENV.tfvars")}"; }

# quota CODE NAME NEED WHAT: quotas count cores. Where nobody has asked for more, the default holds.
check_quota() {
    local cores
    cores=$(quota get-service-quota "$1") || cores=$(quota get-aws-default-service-quota "$1") || cores=""
    if [ -z "$cores" ]; then say "warning: the quota '$2' cannot be read (code $1); $4 need $3 cores"; return; fi
    [ "${cores%%.*}" -ge "$3" ] || say "warning: the quota '$2' is $cores cores, $4 need $3: ask AWS for more (code $1)"
}

quota() { aws service-quotas "$1" --service-code ec2 --quota-code "$2" --query Quota.Value --output text 2> /dev/null; }

GPU_TYPES="g6.xlarge g5.xlarge g4dn.xlarge g6.2xlarge"  # of terraform/variables.tf

begin "" "aws python3" "$@"
no_arguments
read_versions KUBERNETES_VERSION
check_keys
need_account
check_certificate
check_kubernetes
case $(profile) in
    lean) CPU_TYPE=t3a.large NAT_TYPE=t4g.nano CPU_CORES=16 ;;  # 6 nodes, one more while they are updated, the NAT instance
    *) CPU_TYPE=m6a.xlarge NAT_TYPE="" CPU_CORES=60 ;;          # 12 nodes, one more in each zone
esac
check_types
check_quota L-1216C47A "Running On-Demand Standard instances" "$CPU_CORES" "the CPU nodes of $(profile)"
check_quota L-3819A6DF "All G and VT Spot Instance Requests" "$((${GPU_NODES_MAX:-5} * 4))" "${GPU_NODES_MAX:-5} GPU nodes"
say "signed in to account $AWS_ACCOUNT_ID, which is ready for $CLUSTER"
