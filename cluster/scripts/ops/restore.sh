#!/usr/bin/env bash
# Puts a backup of MLflow back, after checking every file of it.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/database.sh
. "$SCRIPTS_DIR/lib/database.sh"

usage() {
    cat <<'TEXT'
usage: restore.sh dev|prod FOLDER [--dry-run] [--yes]

Checks FOLDER against its MANIFEST.sha256, stops MLflow, replaces its database by the backup's in one transaction (all or
nothing), copies the artifacts back over the bucket's, and starts MLflow. Artifacts that are newer than the backup stay.
Runs and model versions that are newer than the backup are LOST, accounts and passwords are those of the backup.

  --yes      do not ask for the name of the cluster (for a program)
  --dry-run  check the folder alone
TEXT
}

# Every file listed has its digest, and no file is there that is not listed.
check_folder() {
    local listed found
    [ -f "$FOLDER/MANIFEST.sha256" ] || die "$FOLDER has no MANIFEST.sha256: it is no complete backup"
    (cd "$FOLDER" && sha256 -c MANIFEST.sha256) > "$SCRATCH/check" 2> /dev/null \
        || die "$FOLDER is damaged, nothing was changed: $(grep -v ': OK$' "$SCRATCH/check" | head -n 3 | tr '\n' ' ')"
    listed=$(grep -c '' "$FOLDER/MANIFEST.sha256")
    found=$(find "$FOLDER" -type f ! -name MANIFEST.sha256 -print0 | tr -dc '\0' | wc -c)
    [ "$listed" -eq "$found" ] || die "$FOLDER has $((found)) files and its manifest lists $listed, nothing was changed: who has added one?"
    [ -f "$FOLDER/database.dump" ] || die "$FOLDER has no database.dump: it is no complete backup"
}

# The COMMIT comes last: where the stream breaks off, the database stays as it was.
restore_database() {
    say "restoring the database"
    in_database pg_restore --no-owner --no-privileges --file=- < "$FOLDER/database.dump" > "$SCRATCH/database.sql" \
        || die "the backup's database cannot be read; the database is as it was"
    {
        echo 'BEGIN; DROP SCHEMA public CASCADE; CREATE SCHEMA public; ALTER SCHEMA public OWNER TO pg_database_owner;'
        cat "$SCRATCH/database.sql"
        echo 'COMMIT;'
    } | in_database psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 > /dev/null || die "the database could not be restored; it is as it was"
}

restore_artifacts() {
    say "restoring s3://$BUCKET/mlflow"
    # cp, not sync: sync leaves alone what has the same size and is newer, damaged or not
    aws s3 cp "$FOLDER/artifacts/mlflow" "s3://$BUCKET/mlflow" --recursive --only-show-errors \
        || die "aws s3 cp failed; the database is restored already. Run this again: it does both once more"
    [ -z "$(aws s3 sync "$FOLDER/artifacts/mlflow" "s3://$BUCKET/mlflow" --size-only --dryrun)" ] \
        || die "not all artifacts are in s3://$BUCKET/mlflow afterwards: run this again"
}

mlflow_replicas() { kubectl get deployment mlflow --namespace mlflow --output "jsonpath={$1}"; }
mlflow_stopped() { case $(mlflow_replicas .status.replicas) in '' | 0) return 0 ;; *) return 1 ;; esac }

stop_mlflow() {
    local replicas
    replicas=$(mlflow_replicas .spec.replicas)
    [ "$replicas" -gt 0 ] || replicas=1  # a restore that was killed left it at 0
    say "stopping MLflow ($replicas replicas)"
    at_exit "kubectl scale deployment mlflow --namespace mlflow --replicas=$replicas > /dev/null"
    kubectl scale deployment mlflow --namespace mlflow --replicas=0 > /dev/null
    wait_until 180 "MLflow to stop" mlflow_stopped || die "MLflow did not stop within 180 s: kubectl -n mlflow get pods"
}

begin --yes "aws terraform kubectl python3" "$@"
[ ${#ARGS[@]} -eq 1 ] || die "give the folder that backup.sh made; got ${#ARGS[@]}"
FOLDER=${ARGS[0]%/}
check_folder
say "$FOLDER is complete and undamaged"
connect
confirm "about to replace MLflow's database of $CLUSTER by that of $FOLDER; newer runs and model versions are lost"
if $DRY_RUN; then exit 0; fi
BUCKET=$(output bucket)
start_database_client
stop_mlflow
restore_database
restore_artifacts
say "restored; MLflow starts again. Its passwords are those of the backup: where Secrets Manager has newer ones, make its version of that day AWSCURRENT again"
