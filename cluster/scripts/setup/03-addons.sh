#!/usr/bin/env bash
# Installs what the cluster needs before ours: monitoring, load balancers, secrets, autoscaler, GPU plugin, queues.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/helm.sh
. "$SCRIPTS_DIR/lib/helm.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"

usage() {
    cat <<'TEXT'
usage: 03-addons.sh dev|prod [--dry-run] [--force-conflicts]

Installs or upgrades, each only where its version or its values have changed: AWS Load Balancer Controller, External
Secrets, Cluster Autoscaler, NVIDIA device plugin, Kueue, and in the standard profile first kube-prometheus-stack (one
small node has no room for it). About 10 minutes the first time.

  --force-conflicts  take back fields of our objects that somebody else has changed
TEXT
}

grafana_login() {
    local password
    password=$(random_password) && printf '{"admin-user":"admin","admin-password":"%s"}' "$password"
}

begin --force-conflicts "aws terraform helm kubectl python3" "$@"
no_arguments
connect

# Namespaces first, with the labels that say what their pods may do; storage before what wants a volume.
rendered Namespace StorageClass > "$SCRATCH/base.yaml"
apply_changed "$SCRATCH/base.yaml" "namespaces and storage"

# Monitoring first: the others have ServiceMonitors, whose kind comes with it.
if [ "$(output profile)" = standard ]; then
    kubernetes_secret monitoring grafana-admin grafana_login
    upstream kube-prometheus-stack monitoring --set-string grafana.admin.existingSecret=grafana-admin
fi
with_role serviceAccount.annotations kube-system/aws-load-balancer-controller upstream aws-load-balancer-controller kube-system \
    --set-string "clusterName=$CLUSTER" --set-string "region=$AWS_REGION" --set-string "vpcId=$(output vpc_id)"
with_role serviceAccount.annotations external-secrets/external-secrets upstream external-secrets external-secrets
with_role rbac.serviceAccount.annotations kube-system/cluster-autoscaler upstream cluster-autoscaler kube-system \
    --set-string "autoDiscovery.clusterName=$CLUSTER" --set-string "awsRegion=$AWS_REGION"
upstream nvidia-device-plugin kube-system
upstream kueue kueue-system

rendered ClusterSecretStore > "$SCRATCH/store.yaml"
apply_changed "$SCRATCH/store.yaml" "the store of secrets"
say "the add-ons are there; next: 04-mlflow.sh $ENV"
