#!/usr/bin/env bash
# Checks the whole platform from outside and inside: health, accounts, TLS, policies, a real training, a real prediction.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"
# shellcheck source=cluster/scripts/lib/mlflow.sh
. "$SCRIPTS_DIR/lib/mlflow.sh"
# shellcheck source=cluster/scripts/lib/verify.sh
. "$SCRIPTS_DIR/lib/verify.sh"

usage() {
    cat <<'TEXT'
usage: 06-verify-all.sh dev|prod [--dry-run] [--without-job]

Prints a line for each check, PASS, FAIL or NOT VERIFIED with the reason, and exits with 1 after a FAIL. It trains for one
epoch on the digits in a RayJob of its own (a run named verify-... in MLflow, no model version), which needs 5 to 10
minutes if a node has to come first, and asks for a prediction if a model is served.

  --without-job  leave the RayJob out
TEXT
}

begin --without-job "aws terraform kubectl python3 curl" "$@"
no_arguments
connect
if $DRY_RUN; then
    say "a real run checks: nodes, deployments, accounts, NetworkPolicies, TLS, one RayJob, one prediction"
    exit 0
fi
check "nodes are ready" nodes_ready
for namespace in $(installed_namespaces); do
    check "deployments of $namespace are available" deployments_available "$namespace"
done
for namespace in rayapp mlflow; do
    check "namespace $namespace closes its pods but for what it lists" policies_present "$namespace"
done
check "the network plugin enforces these policies" policies_enforced
tunnel mlflow mlflow 5000
SECRET=$(get_secret "$(output mlflow_secret_name)")
read_accounts "$SECRET"
check "MLflow is healthy" mlflow_is_up
check "MLflow refuses who gives no password" mlflow_refuses_strangers
check "MLflow knows the user ray" mlflow_knows "$RAY_USER" "$RAY_PASSWORD"
check_api
if flag --without-job; then not_verified "a RayJob" "--without-job"; else check "a RayJob trains to success" job_succeeds; fi
summary
