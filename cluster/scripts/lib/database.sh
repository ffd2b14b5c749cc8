# shellcheck shell=bash
# The database has no public address, so its client runs in a pod of its own, for as long as the script. Sourced after helm.sh.

# Starts the pod. The password comes to it from the Secret that External Secrets keeps, past this machine.
start_database_client() {
    read_versions POSTGRES_CLIENT_IMAGE
    DATABASE_POD=database-client-$$-$RANDOM
    say "starting pod $DATABASE_POD"
    client_pod | kubectl create -f - > /dev/null || die "pod $DATABASE_POD could not be made"
    at_exit "kubectl delete pod '$DATABASE_POD' --namespace mlflow --wait=false > /dev/null"
    kubectl wait --for=condition=Ready "pod/$DATABASE_POD" --namespace mlflow --timeout=180s > /dev/null \
        || die "pod $DATABASE_POD was not ready within 180 s: kubectl -n mlflow describe pod $DATABASE_POD"
}

client_pod() {
    cat <<JSON
{"apiVersion": "v1", "kind": "Pod",
 "metadata": {"name": "$DATABASE_POD", "namespace": "mlflow", "labels": {"app.kubernetes.io/name": "database-client"}},
 "spec": {"restartPolicy": "Never", "automountServiceAccountToken": false, "activeDeadlineSeconds": 14400,
  "nodeSelector": {"rayapp.io/pool": "cpu"},
  "securityContext": {"runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
  "containers": [{"name": "client", "image": "$POSTGRES_CLIENT_IMAGE", "command": ["sleep", "14400"],
   "env": [{"name": "PGHOST", "value": "$(output database_host)"}, {"name": "PGPORT", "value": "$(output database_port)"},
    {"name": "PGDATABASE", "value": "$(output database_name)"}, {"name": "PGSSLMODE", "value": "require"},
    {"name": "PGUSER", "valueFrom": {"secretKeyRef": {"name": "mlflow-database", "key": "username"}}},
    {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "mlflow-database", "key": "password"}}}],
   "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
   "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}}]}}
JSON
}

# Runs a program of PostgreSQL in the pod, with stdin and stdout here.
in_database() { kubectl exec --stdin "$DATABASE_POD" --namespace mlflow -- "$@"; }
