#!/usr/bin/env bash
# Exchanges passwords and keys. Stopped half-way, the same command goes on.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"
# shellcheck source=cluster/scripts/lib/mlflow.sh
. "$SCRIPTS_DIR/lib/mlflow.sh"

usage() {
    cat <<'TEXT'
usage: rotate-secrets.sh dev|prod mlflow|serving|database [--dry-run] [--yes] [--drop-old]

  mlflow    new passwords of MLflow's administrator and of the user ray, new key of its sessions. MLflow restarts pod by
            pod and serving moves to a new Ray cluster without a gap. Ray jobs that run lose their access, and the pods of
            the RayCluster dev are made anew: wait for what runs there.
  serving   a new API key beside the old ones; servers know it within minutes, without a restart. Read it with
            aws secretsmanager get-secret-value (key client_key), hand it to the clients, then run it with --drop-old.
  database  RDS exchanges its password (which it does by itself every week as well); MLflow restarts pod by pod.

  --drop-old  serving: forget all keys but the newest, and make no new one
  --yes       do not ask for the name of the cluster (for a program)
TEXT
}

version_of() {
    aws secretsmanager describe-secret --secret-id "$1" --query VersionIdsToStages --output json | python3 -c '
import json, sys
print(next((v for v, stages in (json.load(sys.stdin) or {}).items() if sys.argv[1] in stages), ""))' "$2"
}

# Makes the pending version of a secret the current one.
make_current() {
    local pending current
    pending=$(version_of "$1" AWSPENDING)
    current=$(version_of "$1" AWSCURRENT)
    if [ "$pending" != "$current" ]; then
        aws secretsmanager update-secret-version-stage --secret-id "$1" --version-stage AWSCURRENT \
            --move-to-version-id "$pending" --remove-from-version-id "$current" > /dev/null
    fi
    aws secretsmanager update-secret-version-stage --secret-id "$1" --version-stage AWSPENDING --remove-from-version-id "$pending" > /dev/null
}

restart_mlflow() {
    say "restarting MLflow, pod by pod"
    kubectl rollout restart deployment/mlflow --namespace mlflow > /dev/null
    kubectl rollout status deployment/mlflow --namespace mlflow --timeout=600s > /dev/null \
        || die "MLflow did not come up with the new secrets within 600 s: kubectl -n mlflow get pods"
}

# A changed annotation makes KubeRay build a new cluster beside the old one and move the traffic when it is ready.
renew_serving() {
    kubectl patch rayservice vision --namespace rayapp --type merge --patch \
        "{\"spec\":{\"rayClusterConfig\":{\"headGroupSpec\":{\"template\":{\"metadata\":{\"annotations\":{\"rayapp.io/secrets\":\"$(date +%s)\"}}}}}}}" > /dev/null
    say "serving moves to a new Ray cluster; the old one serves until it is ready"
}

# A pod keeps the variables that it was started with, and KubeRay replaces none for a changed Secret.
renew_dev() { kubectl delete pods --namespace rayapp --selector ray.io/cluster=dev --wait=false > /dev/null; }

# The new passwords stand in Secrets Manager as AWSPENDING before MLflow learns them, so a run that is stopped anywhere
# loses none: the next one finds out how far it came by trying them.
rotate_mlflow() {
    local old new value
    old=$(get_secret "$SECRET")
    if [ -z "$(version_of "$SECRET" AWSPENDING)" ]; then
        value=$(new_mlflow_secret "$(printf '%s' "$old" | json admin_username)")
        printf '%s' "$value" | put_secret "$SECRET" AWSPENDING
    else
        say "going on with a rotation that was stopped"
    fi
    new=$(get_secret "$SECRET" AWSPENDING)
    tunnel mlflow mlflow 5000
    wait_until 60 "MLflow" mlflow_is_up || die "MLflow does not answer; nothing was exchanged"
    change_passwords "$old" "$new"
    make_current "$SECRET"
    refresh_secret mlflow mlflow-auth
    refresh_secret rayapp mlflow-client
    restart_mlflow
    renew_serving
    renew_dev
}

# change_passwords OLD NEW: the user's first, because the administrator's old password is needed for it.
change_passwords() {
    local new_admin new_password
    read_accounts "$2"
    new_admin=$ADMIN
    new_password=$ADMIN_PASSWORD
    if ! mlflow_knows "$ADMIN" "$ADMIN_PASSWORD"; then
        local ray_password=$RAY_PASSWORD
        read_accounts "$1"
        set_mlflow_password "$RAY_USER" "$ray_password"
        set_mlflow_password "$new_admin" "$new_password"
    fi
}

rotate_serving() {
    local old lines value
    old=$(get_secret "$SECRET")
    lines=$(printf '%s' "$old" | json keys.sha256)
    if flag --drop-old; then
        value=$(printf '%s' "$old" | python3 -c '
import json, sys
secret = json.load(sys.stdin)
secret["keys.sha256"] = secret["keys.sha256"].strip().splitlines()[-1] + "\n"
print(json.dumps(secret))')
    else
        value=$(new_serving_secret "$(printf '%s' "$lines" | awk 'NF {printf "%s\\n", $0}')")
    fi
    printf '%s' "$value" | put_secret "$SECRET"
    refresh_secret rayapp serving-keys
}

rotate_database() {
    local before
    SECRET=$(output database_secret_arn)
    before=$(version_of "$SECRET" AWSCURRENT)
    aws secretsmanager rotate-secret --secret-id "$SECRET" > /dev/null
    wait_until 600 "RDS to exchange the password" database_rotated "$before" || die "RDS did not exchange the password within 600 s: look at secret $SECRET"
    refresh_secret mlflow mlflow-database
    restart_mlflow
}
database_rotated() { [ "$(version_of "$SECRET" AWSCURRENT)" != "$1" ]; }

begin "--yes --drop-old" "aws terraform kubectl python3 curl" "$@"
[ ${#ARGS[@]} -eq 1 ] || die "say which: mlflow, serving or database; got ${#ARGS[@]} of them"
WHICH=${ARGS[0]}
case $WHICH in
    mlflow) WARNING="MLflow restarts; Ray jobs that run lose their access to it" ;;
    serving) WARNING="a new API key is added"; if flag --drop-old; then WARNING="all API keys but the newest stop working"; fi ;;
    database) WARNING="RDS exchanges its password and MLflow restarts" ;;
    *) die "'$WHICH' is no secret of ours: mlflow, serving or database" ;;
esac
if flag --drop-old && [ "$WHICH" != serving ]; then die "--drop-old is for serving, not for $WHICH"; fi
connect
confirm "about to rotate the secret '$WHICH' of $CLUSTER: $WARNING"
if $DRY_RUN; then exit 0; fi
[ "$WHICH" = database ] || SECRET=$(output "${WHICH}_secret_name")
"rotate_$WHICH"
say "$WHICH: rotated"
