#!/usr/bin/env bash
# Installs Airflow, in the standard profile: its database and account, its keys, its chart.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/helm.sh
. "$SCRIPTS_DIR/lib/helm.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"
# shellcheck source=cluster/scripts/lib/database.sh
. "$SCRIPTS_DIR/lib/database.sh"

usage() {
    cat <<'TEXT'
usage: 07-airflow.sh dev|prod [--dry-run]

Makes a database and an account for Airflow on the RDS instance and the keys that it signs with, where they are absent,
and installs its chart. DAGs come from DAGS_REPO at DAGS_REF (cluster/settings.env). About 10 minutes. The lean profile
has no Airflow: CronJobs create the same RayJobs there.
TEXT
}

# The statements on psql's stdin; \gexec runs what a SELECT returns, which is nothing where the thing is there.
statements() {
    cat <<SQL
SELECT 'CREATE ROLE airflow LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'airflow')\gexec
ALTER ROLE airflow PASSWORD '$1';
GRANT airflow TO CURRENT_USER;
SELECT 'CREATE DATABASE airflow OWNER airflow' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'airflow')\gexec
SQL
}

# Gives the account a new password and prints the connection.
database_connection() {
    local password stored
    password=$(random_password) && stored=$(printf '%s' "$password" | python3 "$SCRIPTS_DIR/lib/scram.py") \
        && statements "$stored" | in_database psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 > /dev/null \
        && printf '{"connection":"postgresql://airflow:%s@%s:%s/airflow?sslmode=require"}' "$password" "$HOST" "$PORT"
}

# A Fernet key is 32 bytes in URL-safe base64.
airflow_keys() {
    local api jwt fernet
    api=$(random_password 64) && jwt=$(random_password 64) \
        && fernet=$(python3 -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())') \
        && printf '{"fernet-key":"%s","api-secret-key":"%s","jwt-secret":"%s"}' "$fernet" "$api" "$jwt"
}

need_database() {
    if ! $DRY_RUN && ! kubectl get secret airflow-database --namespace airflow --output name > /dev/null 2>&1; then
        start_database_client
    fi
    kubernetes_secret airflow airflow-database database_connection
}

begin "" "aws terraform helm kubectl python3" "$@"
no_arguments
connect
if [ "$(output profile)" = lean ]; then say "the lean profile has no Airflow: nothing to do"; exit 0; fi
for name in DAGS_REPO DAGS_REF; do
    [ -n "${!name}" ] || die "$SETTINGS_FILE does not set $name for $ENV; cluster/settings.env.example says what it is"
done
case $DAGS_REPO in https://*) ;; *) die "$SETTINGS_FILE: DAGS_REPO is '$DAGS_REPO': an https:// address" ;; esac
HOST=$(output database_host)
PORT=$(output database_port)
BUCKET=$(output bucket)
need_namespace airflow
need_database
kubernetes_secret airflow airflow-keys airflow_keys
# The triggerer's part of the chart makes the account that all others use.
with_role triggerer.serviceAccount.annotations airflow/airflow upstream airflow airflow --set-string "config.logging.remote_base_log_folder=s3://$BUCKET/logs/airflow" \
    --set-string "dags.gitSync.repo=$DAGS_REPO" --set-string "dags.gitSync.ref=$DAGS_REF"
say "Airflow is there. Make its first user: kubectl -n airflow exec -it deploy/airflow-api-server -- airflow users create --help"
