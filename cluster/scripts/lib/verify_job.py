"""stdin: the ConfigMap rayjob-templates as JSON; stdout: a RayJob that trains for one epoch on the head alone."""

from __future__ import annotations

import json
import sys

import yaml

ENTRYPOINT = (
    "python jobs/train.py --data.dataset digits --model.name resnet9 --optim.epochs 1 --register false"
    " --name $RAYAPP_RUN --compute.num_workers 1 --compute.storage_path s3://$RAYAPP_BUCKET/runs"
)
CPUS = "2"  # the head's limit; its template offers none, because nothing should run there otherwise


def main() -> None:
    """Writes the job."""
    job = yaml.safe_load(json.load(sys.stdin)["data"]["evaluate.yaml"])
    job["metadata"]["generateName"] = "verify-"
    spec = job["spec"]
    spec["entrypoint"] = ENTRYPOINT
    spec["backoffLimit"] = 0
    spec["activeDeadlineSeconds"] = 1200
    spec["rayClusterSpec"].pop("workerGroupSpecs", None)
    spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = CPUS
    json.dump(job, sys.stdout)


if __name__ == "__main__":
    main()
