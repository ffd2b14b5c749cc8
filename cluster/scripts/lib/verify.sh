# shellcheck shell=bash
# The checks of 06-verify-all.sh. Sourced after mlflow.sh.

FAILED=0 UNVERIFIED=0
JOB_SECONDS=${RAYAPP_JOB_SECONDS:-1200}

# check WHAT COMMAND...
check() {
    local what=$1
    shift
    if "$@" > "$SCRATCH/check" 2>&1; then
        echo "PASS          $what"
    else
        FAILED=$((FAILED + 1))
        echo "FAIL          $what: $(tail -n 1 "$SCRATCH/check")"
    fi
}

not_verified() { UNVERIFIED=$((UNVERIFIED + 1)); echo "NOT VERIFIED  $1: $2"; }

summary() {
    [ "$FAILED" = 0 ] || die "$FAILED checks failed; the lines above say which"
    say "all checks passed$([ "$UNVERIFIED" = 0 ] || echo ", $UNVERIFIED not verified")"
}

nodes_ready() { kubectl wait --for=condition=Ready node --all --timeout=120s; }
# kubectl calls a namespace without deployments an error, and lean has none in the last two.
installed_namespaces() {
    echo kube-system external-secrets kueue-system kuberay mlflow
    [ "$(output profile)" = lean ] || echo monitoring airflow
}
deployments_available() { kubectl wait --for=condition=Available deployment --all --namespace "$1" --timeout=120s; }

# A policy that selects all pods and lists nothing closes them.
policies_present() {
    kubectl get networkpolicy --namespace "$1" --output json | python3 -c '
import json, sys
policies = json.load(sys.stdin)["items"]
closed = {kind for p in policies if not p["spec"].get("podSelector") for kind in p["spec"].get("policyTypes", ["Ingress"])}
names = ", ".join(p["metadata"]["name"] for p in policies) or "none"
sys.exit(None if policies and ("Ingress" in closed or sys.argv[1] != "rayapp") else f"its policies are: {names}")' "$1"
}

policies_enforced() {
    kubectl get daemonset aws-node --namespace kube-system --output json \
        | grep -q -- --enable-network-policy=true || { echo "aws-node runs without --enable-network-policy=true"; return 1; }
}

mlflow_refuses_strangers() {
    mlflow_call GET '/api/2.0/mlflow/experiments/search?max_results=1'
    [ "$STATUS" = 401 ] || { echo "it answered $STATUS, not 401"; return 1; }
}

# Prints the status of https://api.DOMAIN/PATH. The name is resolved here, to the load balancer, so DNS need not be there
# yet; certificate and name are checked all the same. Further options are curl's; a configuration may come on stdin.
api() {
    local path=$1
    shift
    curl --config - --silent --show-error --max-time 90 --output /dev/null --write-out '%{http_code}' \
        --proto '=https' --tlsv1.2 --connect-to "api.$DOMAIN:443:$BALANCER:443" "$@" "https://api.$DOMAIN$path"
}

# expect STATUS COMMAND...: curl's configuration on stdin goes through
expect() {
    local wanted=$1 got
    shift
    got=$("$@") || true
    [ "$got" = "$wanted" ] || { echo "it answered ${got:-nothing}, not $wanted"; return 1; }
}

plain_http_redirects() {
    local got
    got=$(curl --silent --max-time 30 --output /dev/null --write-out '%{http_code} %{redirect_url}' \
        --connect-to "api.$DOMAIN:80:$BALANCER:80" "http://api.$DOMAIN/livez" < /dev/null) || true
    case $got in 301\ https://*) ;; *) echo "http:// answered '$got', not 301 to https://"; return 1 ;; esac
}

# A client that knows nothing newer than TLS 1.1 has to fail.
old_tls_is_refused() {
    local got
    got=$(curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}' --tls-max 1.1 \
        --connect-to "api.$DOMAIN:443:$BALANCER:443" "https://api.$DOMAIN/livez" < /dev/null) || return 0
    echo "TLS 1.1 was accepted (status $got)"
    return 1
}

served() { [ "$(kubectl get rayservice vision --namespace rayapp --output 'jsonpath={.spec.suspend}')" != true ]; }

check_api() {
    BALANCER=$(kubectl get ingress api --namespace rayapp --output 'jsonpath={.status.loadBalancer.ingress[0].hostname}')
    if [ -z "$BALANCER" ]; then
        check "api.$DOMAIN has a load balancer" eval 'echo "kubectl -n rayapp describe ingress api"; false'
        return
    fi
    check "http:// is sent to https://" plain_http_redirects
    check "TLS older than 1.2 is refused" old_tls_is_refused
    if ! served; then
        not_verified "predictions" "RayService vision sleeps; set AWAKE=true in settings.env and run 05-kuberay.sh $ENV"
        return
    fi
    # Without a model no pod is ready, and the load balancer has nobody to ask.
    mlflow_call GET '/api/2.0/mlflow/registered-models/alias?name=vision&alias=champion' "$RAY_USER" "$RAY_PASSWORD"
    if [ "$STATUS" != 200 ]; then
        not_verified "predictions" "no model has the alias champion yet; train one: create the RayJob of configmap rayjob-templates, key pipeline.yaml"
        return
    fi
    check "https://api.$DOMAIN is alive, with a valid certificate" expect 200 api /livez < /dev/null
    check "predictions want an API key" expect 401 api /predict_image --request POST < /dev/null
    check_prediction
}

check_prediction() {
    local key
    key=$(get_secret "$(output serving_secret_name)") && key=$(printf '%s' "$key" | json client_key)
    python3 "$SCRIPTS_DIR/lib/png.py" > "$SCRATCH/image.png"
    check "a prediction" predicts "$key"
}

predicts() {
    printf 'header = "Authorization: Bearer %s"\n' "$1" | expect 200 api /predict_image --form "image=@$SCRATCH/image.png;type=image/png"
}

# The evaluation's template has one pod and no GPU. RayJob, MLflow, S3 and Pod Identity all have to work for this.
job_succeeds() {
    local job
    kubectl get configmap rayjob-templates --namespace rayapp --output json | python3 "$SCRIPTS_DIR/lib/verify_job.py" > "$SCRATCH/job.json"
    job=$(kubectl create -f "$SCRATCH/job.json" --output name)
    say "$job: up to $JOB_SECONDS s"
    wait_until "$JOB_SECONDS" "$job" job_ended "$job" || { echo "$job did not end within $JOB_SECONDS s (it is left there)"; return 1; }
    [ "$(job_status "$job")" = "Complete SUCCEEDED" ] || { echo "$job ended as $(job_status "$job"): kubectl -n rayapp describe $job"; return 1; }
    kubectl delete "$job" --namespace rayapp --wait=false
}

job_status() { kubectl get "$1" --namespace rayapp --output 'jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}'; }
job_ended() { case $(job_status "$1") in Complete\ * | Failed\ * | *\ FAILED | *\ STOPPED) return 0 ;; *) return 1 ;; esac }
