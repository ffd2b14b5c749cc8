#!/usr/bin/env bash
# Destroys an environment. What the cluster has made by itself (load balancers, disks) goes first: Terraform does not know it.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"

usage() {
    cat <<'TEXT'
usage: teardown.sh dev|prod [--dry-run] [--yes]

DESTROYS the environment: Ray, MLflow, the cluster, the bucket with all runs and models, the images, the secrets, and the
database, of which RDS keeps a last snapshot. Take a backup before: ops/backup.sh. About 30 minutes. The bucket of Terraform's
state stays. Stopped half-way, the same command goes on.

  --yes      do not ask for the name of the cluster (for a program)
  --dry-run  print what would be done
TEXT
}

# Objects whose controllers have to clean up outside the cluster, before the controllers go.
delete_ours() {
    say "deleting jobs, services and load balancers (up to 10 minutes)"
    change kubectl delete rayjobs,rayservices,rayclusters --all --namespace rayapp --ignore-not-found --timeout=300s || say "warning: not all Ray objects went"
    change kubectl delete ingress --all --all-namespaces --ignore-not-found --timeout=300s \
        || die "load balancers are still there, and would keep the network from going: kubectl get ingress -A, then run this again"
    change kubectl delete statefulsets,persistentvolumeclaims --all --namespace rayapp --ignore-not-found --timeout=300s
}

uninstall() {
    local release
    for release in airflow/airflow mlflow/mlflow kuberay/kuberay-operator kueue-system/kueue monitoring/kube-prometheus-stack; do
        change helm uninstall "${release#*/}" --namespace "${release%/*}" --ignore-not-found --wait --timeout 5m > /dev/null
    done
    change kubectl delete persistentvolumeclaims --all --namespace monitoring --ignore-not-found --timeout=300s
    change kubectl wait --for=delete persistentvolume --all --timeout=180s || say "warning: disks are left; look for them under EC2, Volumes"
}

# Whether the cluster is still there; after a teardown that was stopped it may not be.
cluster_answers() {
    aws eks describe-cluster --name "$CLUSTER" --query cluster.status --output text > "$SCRATCH/state" 2> /dev/null && [ "$(cat "$SCRATCH/state")" = ACTIVE ]
}

unprotect_and_destroy() {
    if $DRY_RUN; then
        change terraform apply "${TERRAFORM_VARS[@]}" -var deletion_protection=false
        change terraform destroy "${TERRAFORM_VARS[@]}" -var deletion_protection=false
        return
    fi
    terraform_init
    if [ -z "$(tf state list)" ]; then say "Terraform has nothing left"; return; fi
    if cluster_answers; then
        say "taking the protection off (about 5 minutes)"
        tf apply -input=false -auto-approve -compact-warnings "${TERRAFORM_VARS[@]}" -var deletion_protection=false \
            || die "the protection is not off everywhere; what Terraform said is above. Run this again"
    fi
    say "destroying (about 25 minutes)"
    tf plan -input=false -destroy -compact-warnings "-out=$SCRATCH/destroy.tfplan" "${TERRAFORM_VARS[@]}" -var deletion_protection=false > /dev/null \
        || die "terraform could not plan the destruction; what it said is above"
    tf apply -input=false "$SCRATCH/destroy.tfplan" || die "not all is destroyed; what Terraform said is above. Run this again: it goes on"
}

begin --yes "aws terraform helm kubectl python3" "$@"
no_arguments
terraform_variables
need_account
confirm "about to DESTROY $CLUSTER in account $AWS_ACCOUNT_ID ($AWS_REGION) with all runs, models and data; a backup is made by ops/backup.sh"
if $DRY_RUN || cluster_answers; then
    connect
    delete_ours
    uninstall
fi
unprotect_and_destroy
$DRY_RUN || rm -rf "$STATE_DIR"
say "$CLUSTER is gone; its last database snapshot and the bucket $STATE_BUCKET stay, delete them by hand if nobody needs them"
