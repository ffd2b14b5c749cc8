# shellcheck shell=bash
# MLflow's REST API, through a tunnel of kubectl: it has no public address. Sourced after secrets.sh.

MLFLOW_HOST=mlflow.mlflow.svc.cluster.local:5000  # the name that its --allowed-hosts knows

# Sets TUNNEL to the local address of a service. tunnel NAMESPACE SERVICE PORT
tunnel() {
    local log=$SCRATCH/tunnel-$2
    kubectl port-forward --namespace "$1" "service/$2" ":$3" --address 127.0.0.1 > "$log" 2>&1 &
    at_exit "kill $! 2> /dev/null"
    wait_until 60 "a tunnel to $2" grep -q 'Forwarding from' "$log" || { cat "$log" >&2; die "no tunnel to service $1/$2 within 60 s"; }
    TUNNEL=$(sed -n 's/^Forwarding from \(127[^ ]*\) .*/\1/p' "$log" | head -n 1)
}

# Quotes for a configuration file of curl.
quoted() { printf '%s' "$1" | sed 's/["\\]/\\&/g'; }

# Sets STATUS. mlflow_call METHOD PATH [USER PASSWORD [JSON]]; what is secret goes through curl's stdin.
mlflow_call() {
    local answer
    answer=$({
        [ -z "${3:-}" ] || printf 'user = "%s"\n' "$(quoted "$3:$4")"
        [ -z "${5:-}" ] || printf 'header = "Content-Type: application/json"\ndata = "%s"\n' "$(quoted "$5")"
    } | curl --config - --silent --show-error --max-time 60 --request "$1" --header "Host: $MLFLOW_HOST" \
        --write-out '\n%{http_code}' "http://$TUNNEL$2") || die "MLflow does not answer at $2: kubectl -n mlflow get pods"
    STATUS=${answer##*$'\n'}
}

mlflow_is_up() { curl --silent --fail --max-time 5 --header "Host: $MLFLOW_HOST" "http://$TUNNEL/health"; }

# Whether MLflow knows this user with this password.
mlflow_knows() { mlflow_call GET /api/2.0/mlflow/users/current "$1" "$2"; [ "$STATUS" = 200 ]; }

# Sets ADMIN, ADMIN_PASSWORD, RAY_USER, RAY_PASSWORD from the JSON of a secret.
read_accounts() {
    ADMIN=$(printf '%s' "$1" | json admin_username)
    ADMIN_PASSWORD=$(printf '%s' "$1" | json admin_password)
    RAY_USER=$(printf '%s' "$1" | json ray_username)
    RAY_PASSWORD=$(printf '%s' "$1" | json ray_password)
}

# The account of all Ray pods. It owns what it creates and sees nothing else: default_permission is NO_PERMISSIONS.
need_mlflow_user() {
    local account
    if mlflow_knows "$RAY_USER" "$RAY_PASSWORD"; then say "MLflow user $RAY_USER: there"; return; fi
    mlflow_knows "$ADMIN" "$ADMIN_PASSWORD" \
        || die "MLflow refuses the administrator's password of Secrets Manager ($STATUS): was it changed by hand? Put the right one there"
    mlflow_call GET "/api/2.0/mlflow/users/get?username=$RAY_USER" "$ADMIN" "$ADMIN_PASSWORD"
    if [ "$STATUS" = 200 ]; then
        set_mlflow_password "$RAY_USER" "$RAY_PASSWORD"
        return
    fi
    account=$(printf '{"username":"%s","password":"%s"}' "$RAY_USER" "$RAY_PASSWORD")
    mlflow_call POST /api/2.0/mlflow/users/create "$ADMIN" "$ADMIN_PASSWORD" "$account"
    [ "$STATUS" = 200 ] || die "MLflow made no user $RAY_USER: it answered $STATUS"
    say "MLflow user $RAY_USER: made"
}

# set_mlflow_password USER PASSWORD, as ADMIN; who changes the own password has to give the current one
set_mlflow_password() {
    mlflow_call PATCH /api/2.0/mlflow/users/update-password "$ADMIN" "$ADMIN_PASSWORD" \
        "$(printf '{"username":"%s","password":"%s","current_password":"%s"}' "$1" "$2" "$ADMIN_PASSWORD")"
    [ "$STATUS" = 200 ] || die "MLflow did not change the password of $1: it answered $STATUS"
    say "MLflow user $1: has a new password"
}
