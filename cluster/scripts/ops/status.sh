#!/usr/bin/env bash
# Shows how the platform is. Reads only.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"

usage() {
    cat <<'TEXT'
usage: status.sh dev|prod [--dry-run]

Shows nodes, Helm releases, Ray clusters, jobs and services, pods that do not run, secrets that were not copied, the
addresses of the load balancers, and the state of the database. A part that cannot be read says so; the others follow.
TEXT
}

# part TITLE COMMAND...
part() {
    echo
    echo "== $1"
    shift
    "$@" 2>&1 || echo "(cannot be read)"
}

begin "" "aws terraform helm kubectl python3" "$@"
no_arguments
connect
if $DRY_RUN; then say "a real run reads the cluster and the account"; exit 0; fi
echo "$CLUSTER in $AWS_REGION, profile $(output profile)"
part "Nodes" kubectl get nodes --label-columns rayapp.io/pool,node.kubernetes.io/instance-type,eks.amazonaws.com/capacityType
part "Releases" helm list --all-namespaces
part "Ray" kubectl get rayservices,rayclusters,rayjobs --namespace rayapp
part "Schedules" kubectl get cronjobs --namespace rayapp
part "Queues" kubectl get clusterqueues,localqueues --all-namespaces
part "Pods that do not run" kubectl get pods --all-namespaces --field-selector 'status.phase!=Running,status.phase!=Succeeded'
part "Secrets copied from Secrets Manager" kubectl get externalsecrets --all-namespaces
part "Load balancers" kubectl get ingress --all-namespaces
part "Database" aws rds describe-db-instances --db-instance-identifier "$CLUSTER" --output table \
    --query 'DBInstances[0].[DBInstanceStatus,DBInstanceClass,MultiAZ,LatestRestorableTime]'
