#!/usr/bin/env bash
# Makes the secrets where there are none, installs MLflow, and makes the account of the Ray pods in it.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/helm.sh
. "$SCRIPTS_DIR/lib/helm.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"
# shellcheck source=cluster/scripts/lib/mlflow.sh
. "$SCRIPTS_DIR/lib/mlflow.sh"

usage() {
    cat <<'TEXT'
usage: 04-mlflow.sh dev|prod [--dry-run]

Fills the secrets of MLflow and of serving in Secrets Manager where they are empty (an existing one is never changed:
ops/rotate-secrets.sh does that), installs cluster/charts/mlflow, and makes MLflow's user `ray`. About 5 minutes.
TEXT
}

need_image() {
    if $DRY_RUN; then return; fi
    aws ecr describe-images --repository-name "$CLUSTER/rayapp-mlflow" --image-ids "imageTag=$TAG" > /dev/null 2>&1 \
        || die "image rayapp-mlflow:$TAG is not in the registry: TF_DATA_DIR=$STATE_DIR/terraform cluster/scripts/build-images.sh --push mlflow"
}

# The chart for the standard profile verifies the certificate of the database with this.
need_database_ca() {
    local url=https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem
    if $DRY_RUN; then change kubectl create configmap rds-ca --namespace mlflow "--from-file=ca.pem=$url"; return; fi
    if kubectl get configmap rds-ca --namespace mlflow --output name > /dev/null 2>&1; then return; fi
    curl --silent --show-error --fail --proto '=https' --max-time 60 --output "$SCRATCH/ca.pem" "$url" \
        || die "$url cannot be fetched: it holds the certificates of the database"
    kubectl create configmap rds-ca --namespace mlflow "--from-file=ca.pem=$SCRATCH/ca.pem" > /dev/null
}

# Sets VALUES: what differs from one cluster to the next.
collect_values() {
    local name value
    VALUES=(--values "${CHART[0]}/values-lean.yaml")
    if [ "$(output profile)" = standard ]; then VALUES=(--values "${CHART[0]}/values-prod.yaml"); fi
    while IFS='=' read -r name value; do VALUES+=(--set-string "$name=$value"); done <<LINES
image.repository=$(registry)/rayapp-mlflow
image.tag=$TAG
region=$AWS_REGION
database.host=$(output database_host)
database.name=$(output database_name)
database.secret=$(output database_secret_arn)
auth.secret=$MLFLOW_SECRET
artifacts.bucket=$(output bucket)
ingress.host=mlflow.$DOMAIN
ingress.certificateArn=$CERTIFICATE_ARN
networkPolicy.vpcCidr=$(output vpc_cidr)
LINES
    VALUES+=(--set "database.port=$(output database_port)")
    for name in "${VALUES[@]}"; do
        case $name in *= | *=/*) die "value '$name' of MLflow's chart is empty: look at 'terraform output' and run 02-aws.sh $ENV" ;; esac
    done
}

begin "" "aws terraform helm kubectl python3 curl" "$@"
no_arguments
read_versions RAYAPP_VERSION MLFLOW_VERSION
connect
TAG=$RAYAPP_VERSION-mlflow$MLFLOW_VERSION
MLFLOW_SECRET=$(output mlflow_secret_name)
SERVING_SECRET=$(output serving_secret_name)
need_image
fill_secret "$MLFLOW_SECRET" new_mlflow_secret admin
fill_secret "$SERVING_SECRET" new_serving_secret ""
CHART=("$CLUSTER_DIR/charts/mlflow")
CHART_VERSION=$MLFLOW_VERSION
if [ "$(output profile)" = standard ]; then need_database_ca; fi
collect_values
with_role serviceAccount.annotations mlflow/mlflow release mlflow mlflow "${VALUES[@]}"
if $DRY_RUN; then say "a real run makes MLflow's user ray here"; exit 0; fi
tunnel mlflow mlflow 5000
wait_until 120 "MLflow" mlflow_is_up || die "MLflow does not answer /health within 120 s: kubectl -n mlflow get pods"
SECRET=$(get_secret "$MLFLOW_SECRET")
read_accounts "$SECRET"
need_mlflow_user
say "MLflow is there; next: 05-kuberay.sh $ENV"
