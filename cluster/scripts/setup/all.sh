#!/usr/bin/env bash
# Everything from nothing to a verified platform, in order. Stopped half-way, it goes on with the step that did not end.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

STEPS="00-credentials 01-prerequisites 02-aws images 03-addons 04-mlflow 05-kuberay 07-airflow 06-verify-all"

usage() {
    cat <<TEXT
usage: all.sh dev|prod [--dry-run] [--yes] [--from=STEP]

Runs $STEPS. About an hour the first time. Every step can be run again and changes only what is not as it should be; after
an error, all.sh starts with the step that did not end, after the two that only check.

  --yes        do not ask before a Terraform plan is applied (for a program)
  --from=STEP  start with this step
TEXT
}

is_step() { case " $STEPS " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

# The step to start with: as asked for, or where the last run stopped, or the first.
first_step() {
    local step=00-credentials
    if flag --from; then
        step=$(flag_value --from)
    elif [ -f "$STATE_DIR/next-step" ]; then
        step=$(cat "$STATE_DIR/next-step")
        say "going on with $step, where the last run stopped (--from=00-credentials starts anew)"
    fi
    is_step "$step" || die "'$step' is no step (steps: $STEPS)"
    echo "$step"
}

# Pushed tags are never overwritten, so images that are there are right.
push_images() {
    local repository tag=$RAYAPP_VERSION-ray$RAY_VERSION wanted="" image
    for image in "cpu $CLUSTER/rayapp $tag" "cuda $CLUSTER/rayapp $tag-cuda" "mlflow $CLUSTER/rayapp-mlflow $RAYAPP_VERSION-mlflow$MLFLOW_VERSION"; do
        read -r image repository tag <<< "$image"
        $DRY_RUN || ! aws ecr describe-images --repository-name "$repository" --image-ids "imageTag=$tag" > /dev/null 2>&1 || continue
        wanted="$wanted $image"
    done
    if [ -z "$wanted" ]; then say "images are in the registry"; return; fi
    say "building and pushing$wanted (20 minutes or more)"
    # shellcheck disable=SC2086  # a list of words
    TF_DATA_DIR=$STATE_DIR/terraform change "$SCRIPTS_DIR/build-images.sh" --push $wanted
}

run_step() {
    local options=()
    say "--- $1"
    if [ "$1" = images ]; then push_images; return; fi
    if $DRY_RUN; then options+=(--dry-run); fi
    if [ "$1" = 02-aws ] && flag --yes; then options+=(--yes); fi
    "$SCRIPTS_DIR/setup/$1.sh" "$ENV" ${options[@]+"${options[@]}"}
}

begin "--yes --from" "aws" "$@"
no_arguments
read_versions RAYAPP_VERSION RAY_VERSION MLFLOW_VERSION
start=$(first_step)
skipping=true
for step in $STEPS; do
    [ "$step" != "$start" ] || skipping=false
    case $step in 00-* | 01-*) ;; *) if $skipping; then continue; fi ;; esac
    if ! $skipping && ! $DRY_RUN; then echo "$step" > "$STATE_DIR/next-step"; fi
    run_step "$step" || die "$step did not end; correct what it says above and run all.sh $ENV again: it goes on there"
done
$DRY_RUN || rm -f "$STATE_DIR/next-step"
say "done"
