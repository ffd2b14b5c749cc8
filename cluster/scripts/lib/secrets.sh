# shellcheck shell=bash
# Secrets: made at random, kept in AWS Secrets Manager or Kubernetes. Sourced after terraform.sh.
# A value travels through shell variables, pipes and the printf of the shell itself; it is never an argument of a program,
# which everybody on the machine could read, nor in a file, nor in a message.

# Letters and digits only, so that no JSON, URL or configuration file has to quote it.
random_password() {
    aws secretsmanager get-random-password --password-length "${1:-40}" --exclude-punctuation --require-each-included-type \
        --query RandomPassword --output text || die "Secrets Manager gave no random password: may your role call secretsmanager:GetRandomPassword?"
}

# Whether Terraform's box is still empty.
secret_is_empty() {
    local versions
    versions=$(aws secretsmanager describe-secret --secret-id "$1" --query VersionIdsToStages --output json) \
        || die "secret $1 is not there: run cluster/scripts/setup/02-aws.sh $ENV first"
    case $versions in *AWSCURRENT*) return 1 ;; *) return 0 ;; esac
}

# The JSON of a secret. $2: its stage.
get_secret() { aws secretsmanager get-secret-value --secret-id "$1" --version-stage "${2:-AWSCURRENT}" --query SecretString --output text; }

# Puts the JSON on stdin. $2: its stage.
put_secret() {
    aws secretsmanager put-secret-value --secret-id "$1" --version-stages "${2:-AWSCURRENT}" --secret-string file:///dev/stdin > /dev/null \
        || die "secret $1 could not be written; it is as it was"
}

# JSON of the accounts of MLflow. $1: user name of the administrator.
new_mlflow_secret() {
    local admin ray flask
    # && because a shell inside $( ) goes on after an error: no password may ever be empty
    admin=$(random_password) && ray=$(random_password) && flask=$(random_password 64) && printf '{"admin_username":"%s","admin_password":"%s","ray_username":"ray","ray_password":"%s","flask_secret_key":"%s"}' \
        "$1" "$admin" "$ray" "$flask"
}

# JSON of the API keys: digests for the servers, and the first client's key. $1: lines of digests that stay.
new_serving_secret() {
    local key digest
    key=$(random_password) && digest=$(printf '%s' "$key" | sha256) && printf '{"keys.sha256":"%s%s first\\n","client_key":"%s"}' "$1" "${digest%% *}" "$key"
}

fill_secret() {
    if $DRY_RUN; then change aws secretsmanager put-secret-value --secret-id "$1" --secret-string file:///dev/stdin; return; fi
    if ! secret_is_empty "$1"; then say "secret $1: filled already"; return; fi
    say "secret $1: filling it"
    local value
    value=$("$2" "$3")
    printf '%s' "$value" | put_secret "$1"
}

# kubernetes_secret NAMESPACE NAME FUNCTION: made from the JSON object that FUNCTION prints, where it is absent.
# create, not apply: apply would keep the values in an annotation as well.
kubernetes_secret() {
    local namespace=$1 name=$2 data
    if $DRY_RUN; then change kubectl create --namespace "$namespace" secret generic "$name"; return; fi
    if kubectl get secret "$name" --namespace "$namespace" --output name > /dev/null 2>&1; then return; fi
    say "secret $namespace/$name: making it"
    data=$("$3")
    printf '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"%s","namespace":"%s"},"stringData":%s}' "$name" "$namespace" "$data" \
        | kubectl create -f - > /dev/null || die "secret $namespace/$name could not be made"
}

need_namespace() {
    if $DRY_RUN; then change kubectl create namespace "$1"; return; fi
    kubectl get namespace "$1" --output name > /dev/null 2>&1 || change kubectl create namespace "$1" > /dev/null
}

# Tells External Secrets to read again now, and waits for it. refresh_secret NAMESPACE NAME
refresh_secret() {
    local before
    before=$(refreshed "$1" "$2")
    change kubectl annotate externalsecret "$2" --namespace "$1" --overwrite "force-sync=$(date +%s)" > /dev/null
    if $DRY_RUN; then return; fi
    wait_until 120 "External Secrets to read $1/$2" is_refreshed "$1" "$2" "$before" \
        || die "External Secrets did not read $1/$2 within 120 s: kubectl -n $1 describe externalsecret $2"
}

refreshed() { $DRY_RUN || kubectl get externalsecret "$2" --namespace "$1" --output 'jsonpath={.status.refreshTime}'; }
is_refreshed() { [ "$(refreshed "$1" "$2")" != "$3" ]; }
