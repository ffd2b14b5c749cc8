# shellcheck shell=bash
# Terraform with a state of its own for each environment, and its outputs. Sourced after lib.sh.

TERRAFORM_DIR=$(dirname "$CLUSTER_DIR")/terraform

# Settings as -var options, in TERRAFORM_VARS: they win over any tfvars file. None is secret.
terraform_variables() {
    read_versions KUBERNETES_VERSION
    TERRAFORM_VARS=(
        "-var-file=envs/$ENV.tfvars" -var "name=$NAME" -var "region=$AWS_REGION" -var "domain=$DOMAIN"
        -var "certificate_arn=$CERTIFICATE_ARN" -var "admin_principal_arns=$(hcl_list "$ADMIN_PRINCIPAL_ARNS")"
        -var "public_access_cidrs=$(hcl_list "$PUBLIC_ACCESS_CIDRS")" -var "alert_emails=$(hcl_list "$ALERT_EMAILS")"
        -var "kubernetes_version=$KUBERNETES_VERSION"
    )
    [ -z "$PROFILE" ] || TERRAFORM_VARS+=(-var "profile=$PROFILE")
    [ -z "$POD_IAM" ] || TERRAFORM_VARS+=(-var "pod_iam=$POD_IAM")
    [ -z "$GPU_NODES_MAX" ] || TERRAFORM_VARS+=(-var "gpu_nodes_max=$GPU_NODES_MAX")
}

# a,b -> ["a","b"]
hcl_list() { printf '%s' "$1" | python3 -c 'import json, sys; print(json.dumps([w.strip() for w in sys.stdin.read().split(",") if w.strip()]))'; }

tf() { TF_DATA_DIR=$STATE_DIR/terraform TF_IN_AUTOMATION=1 terraform -chdir="$TERRAFORM_DIR" "$@"; }

terraform_init() {
    [ -f "$TERRAFORM_DIR/backend.tf" ] || printf 'terraform {\n  backend "s3" {}\n}\n' > "$TERRAFORM_DIR/backend.tf"
    tf init -input=false -reconfigure -backend-config="bucket=$STATE_BUCKET" -backend-config="key=$CLUSTER.tfstate" \
        -backend-config="region=$AWS_REGION" -backend-config=encrypt=true -backend-config=use_lockfile=true > "$SCRATCH/init" 2>&1 \
        || { cat "$SCRATCH/init" >&2; die "terraform init failed; what it said is above"; }
}

# Keeps the outputs in a file; they hold names and addresses, no secret.
save_outputs() {
    tf output -json > "$SCRATCH/outputs.json" || die "Terraform has no outputs: run cluster/scripts/setup/02-aws.sh $ENV first"
    mv "$SCRATCH/outputs.json" "$STATE_DIR/outputs.json"
}

# Reads the outputs and connects to the cluster. A dry run on a machine without them goes on with names as placeholders.
connect() {
    if $DRY_RUN; then return; fi
    need_account
    [ -d "$STATE_DIR/terraform" ] || terraform_init
    save_outputs
    aws eks update-kubeconfig --name "$CLUSTER" --region "$AWS_REGION" --kubeconfig "$KUBECONFIG" > /dev/null \
        || die "cluster $CLUSTER is not there, or you may not see it: run cluster/scripts/setup/02-aws.sh $ENV"
    kubectl get --raw /readyz --request-timeout=20s > /dev/null \
        || die "the Kubernetes API of $CLUSTER does not answer: is your network among PUBLIC_ACCESS_CIDRS, and your role among ADMIN_PRINCIPAL_ARNS?"
}

# output NAME [KEY]
output() {
    if [ ! -f "$STATE_DIR/outputs.json" ]; then
        if $DRY_RUN; then echo "<$1>"; return; fi
        die "output $1 is not known yet: run cluster/scripts/setup/02-aws.sh $ENV first"
    fi
    local name=$1
    shift
    json "$name" value "$@" < "$STATE_DIR/outputs.json" || die "Terraform has no output '$name': run cluster/scripts/setup/02-aws.sh $ENV"
}

# The ECR registry with its path: what stands before the image's name.
registry() { local url; url=$(output ecr_repository_urls rayapp) && echo "${url%/*}"; }

# The role of a service account that has to carry it as an annotation (IRSA); with Pod Identity nothing. $1: NAMESPACE/NAME
role_of() { [ "$(output pod_iam)" != irsa ] || output pod_role_arns "$1"; }

# What render.sh needs, exported.
render_environment() {
    export REGISTRY BUCKET MLFLOW_SECRET SERVING_SECRET DOMAIN CERTIFICATE_ARN RAY_JOBS_ROLE_ARN RAY_SERVE_ROLE_ARN
    REGISTRY=$(registry)
    BUCKET=$(output bucket)
    MLFLOW_SECRET=$(output mlflow_secret_name)
    SERVING_SECRET=$(output serving_secret_name)
    RAY_JOBS_ROLE_ARN=$(role_of rayapp/ray-jobs)
    RAY_SERVE_ROLE_ARN=$(role_of rayapp/ray-serve)
}
