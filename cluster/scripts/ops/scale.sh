#!/usr/bin/env bash
# Changes how many nodes a group may have, at once.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"

usage() {
    cat <<'TEXT'
usage: scale.sh dev|prod gpu|cpu-ZONE MAX [--dry-run] [--yes]

Sets the most nodes of a group: gpu 1 to 5, cpu-a (of zone a, and so on) 1 to 10 (EKS takes no maximum of 0). Where more run, the surplus is ENDED with what runs on it, and it
asks for the name of the cluster first. How many there are below that is for the cluster autoscaler to say.
It holds until the next 02-aws.sh; to keep it, set GPU_NODES_MAX in cluster/settings.env (gpu), or terraform/locals.tf (cpu).

  --yes  do not ask (for a program)
TEXT
}

begin --yes "aws terraform kubectl python3" "$@"
[ ${#ARGS[@]} -eq 2 ] || die "give a group and a number, as in 'scale.sh $ENV gpu 3'; got ${#ARGS[@]} of them"
GROUP=${ARGS[0]} MAX=${ARGS[1]}
case "$GROUP $MAX" in
    gpu\ [1-5] | cpu-[a-z]\ [1-9] | cpu-[a-z]\ 10) ;;
    *) die "'$GROUP $MAX': the group is gpu with 1 to 5 nodes, or cpu-a, or that of another zone, with 1 to 10" ;;
esac
connect
if $DRY_RUN; then
    change aws eks update-nodegroup-config --cluster-name "$CLUSTER" --nodegroup-name "$GROUP" --scaling-config "maxSize=$MAX"
    exit 0
fi
NOW=$(aws eks describe-nodegroup --cluster-name "$CLUSTER" --nodegroup-name "$GROUP" --query nodegroup.scalingConfig --output json)
MIN=$(printf '%s' "$NOW" | json minSize)
DESIRED=$(printf '%s' "$NOW" | json desiredSize)
OLD_MAX=$(printf '%s' "$NOW" | json maxSize)
if [ "$OLD_MAX" = "$MAX" ]; then say "$GROUP: at most $MAX nodes already"; exit 0; fi
if [ "$DESIRED" -gt "$MAX" ]; then
    confirm "$GROUP has $DESIRED nodes: about to end $((DESIRED - MAX)) of them with what runs there"
    DESIRED=$MAX
fi
[ "$MIN" -le "$MAX" ] || MIN=$MAX
change aws eks update-nodegroup-config --cluster-name "$CLUSTER" --nodegroup-name "$GROUP" \
    --scaling-config "minSize=$MIN,maxSize=$MAX,desiredSize=$DESIRED" > /dev/null
say "$GROUP: at most $MAX nodes (was $OLD_MAX), until the next 02-aws.sh"
