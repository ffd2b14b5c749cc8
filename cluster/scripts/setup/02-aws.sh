#!/usr/bin/env bash
# Makes the AWS side: the bucket of Terraform's state, then a plan that you see, then exactly that plan.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"

usage() {
    cat <<'TEXT'
usage: 02-aws.sh dev|prod [--dry-run] [--yes]

Applies terraform/ with terraform/envs/ENV.tfvars and cluster/settings.env. It shows the plan and asks for the name of the
cluster before it applies it. The first time takes about 25 minutes, most of it for EKS and the database.

  --yes      do not ask (for a program)
  --dry-run  show the plan alone: no lock, no state is written
TEXT
}

# A bucket whose versioning is on is finished, because that comes last.
state_bucket_is_ready() {
    [ "$(aws s3api get-bucket-versioning --bucket "$STATE_BUCKET" --expected-bucket-owner "$AWS_ACCOUNT_ID" --query Status --output text 2> /dev/null)" = Enabled ]
}

make_state_bucket() {
    local policy
    say "bucket $STATE_BUCKET for Terraform's state: making it"
    if ! aws s3api head-bucket --bucket "$STATE_BUCKET" --expected-bucket-owner "$AWS_ACCOUNT_ID" > /dev/null 2>&1; then
        # us-east-1 is the one region that must not be named
        set -- --create-bucket-configuration "LocationConstraint=$AWS_REGION"
        [ "$AWS_REGION" != us-east-1 ] || set --
        change aws s3api create-bucket --bucket "$STATE_BUCKET" "$@" > /dev/null
    fi
    change aws s3api put-public-access-block --bucket "$STATE_BUCKET" \
        --public-access-block-configuration BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
    change aws s3api put-bucket-encryption --bucket "$STATE_BUCKET" \
        --server-side-encryption-configuration '{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"aws:kms"},"BucketKeyEnabled":true}]}'
    policy='{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::B","arn:aws:s3:::B/*"],"Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}'
    change aws s3api put-bucket-policy --bucket "$STATE_BUCKET" --policy "${policy//:::B/:::$STATE_BUCKET}"
    change aws s3api put-bucket-versioning --bucket "$STATE_BUCKET" --versioning-configuration Status=Enabled
}

# Sets CHANGES to whether the plan has any.
make_plan() {
    local code=0
    say "planning (about a minute)"
    tf plan -input=false -detailed-exitcode -compact-warnings "$@" "${TERRAFORM_VARS[@]}" || code=$?
    case $code in
        0) CHANGES=false ;;
        2) CHANGES=true ;;
        *) die "terraform plan failed; what it said is above" ;;
    esac
}

# What is destroyed is named again at the end, where nobody overlooks it.
lost() {
    tf show -json "$PLAN" | python3 -c '
import json, sys
for change in json.load(sys.stdin).get("resource_changes", []):
    if "delete" in change["change"]["actions"]:
        print("  " + change["address"])'
}

apply() {
    local lost
    lost=$(lost)
    confirm "about to apply this plan to $CLUSTER${lost:+; it DESTROYS or replaces:
$lost}"
    say "applying (the first time: about 25 minutes)"
    tf apply -input=false "$PLAN" || die "terraform apply stopped; what it said is above. Run this again: it goes on from there"
}

begin --yes "aws terraform python3" "$@"
no_arguments
need_account
PLAN=$SCRATCH/plan.tfplan  # it holds the settings; it goes when the script ends
terraform_variables
if ! state_bucket_is_ready; then make_state_bucket; fi
if $DRY_RUN && ! state_bucket_is_ready; then
    say "no plan yet: it needs the bucket of Terraform's state"
    exit 0
fi
terraform_init
if $DRY_RUN; then make_plan -lock=false; exit 0; fi
make_plan -lock-timeout=5m "-out=$PLAN"
if $CHANGES; then apply; else say "AWS is as it should be"; fi
save_outputs
say "$CLUSTER is there; next: cluster/scripts/build-images.sh --push cpu cuda mlflow, then 03-addons.sh $ENV"
