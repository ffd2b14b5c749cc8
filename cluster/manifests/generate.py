"""Writes the manifests that follow from something else: serve_configs/, cluster/versions.env, rayapp/serve/haproxy.py.

    python3 cluster/manifests/generate.py           # writes them
    python3 cluster/manifests/generate.py --check   # exit 1 and their names where what is committed differs

The rest of this folder is written by hand. Needs Python 3.11 and PyYAML.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray_objects as ray
import yaml
from ray_pods import ROOT, Json

HERE = Path(__file__).parent
MARK = "# Written by cluster/manifests/generate.py; change that or its sources, not this.\n"
SERVE_CONFIGS = {"prod": "production.yaml", "dev": "staging.yaml"}
NOT_OF_PODS = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # proxies and replicas have one each
DAILY, WEEKLY = "0 3 * * *", "0 5 * * 6"  # UTC
BUCKET = "s3://$RAYAPP_BUCKET"
DATA = f"--data.dataset parquet --data.path {BUCKET}/data/train"
ON_GPUS = f"--compute.device cuda --compute.num_workers 2 --compute.storage_path {BUCKET}/runs"
RECIPE = "jobs/configs/cifar10-resnet18.yaml"
TRAIN = f"python jobs/train.py --config {RECIPE} --name $RAYAPP_RUN --resume auto {DATA} {ON_GPUS}"
EVALUATE = "python jobs/evaluate.py --model models:/vision@challenger"
TUNE = (
    f"python jobs/tune.py --config jobs/configs/sweep-optimizer.yaml --name $RAYAPP_RUN {DATA} --trials.gpus 0.5"
    f" --compute.device cuda --compute.storage_path {BUCKET}/runs --then_train true"
)
PREDICT = (
    f"python jobs/batch_predict.py --model models:/vision@champion --data.path {BUCKET}/data/predict"
    f" --output {BUCKET}/predictions/$RAYAPP_RUN"
)
# KubeRay pastes the entrypoint into a shell of the submitter, where && would run the rest in that pod: hence bash -c,
# and double quotes, for the submitter has the variables. Exit code 3 is the gate's "not better": no failure.
PROMOTE = "{ python jobs/promote.py || [ \\$? -eq 3 ]; }"
PIPELINE = f'bash -c "{TRAIN} && {EVALUATE} && {PROMOTE}"'
# Of the schedule alone: the winner, which tune has evaluated, would else be gone with the next night's challenger.
TUNE_AND_PROMOTE = f'bash -c "{TUNE} && {PROMOTE}"'


class Dumper(yaml.SafeDumper):
    """Without aliases, and with text of several lines as a block."""

    def ignore_aliases(self, _: object) -> bool:
        """Every object is written out."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)


def dump(obj: Json | list[Json]) -> str:
    """The object as YAML, after the mark."""
    return MARK + yaml.dump(obj, Dumper=Dumper, sort_keys=False, width=1000)


def serve_config(name: str) -> str:
    """A file of serve_configs/ as it is: its comments say why each number is as it is."""
    return (ROOT / "serve_configs" / name).read_text(encoding="utf-8")


def serve_env(config: str) -> list[Json]:
    """The variables of Serve's controller for every pod: what Serve starts on a node reads them from the node.

    RAY_SERVE_THROUGHPUT_OPTIMIZED is not among them. What of it pays here is, by its own name; the rest, gRPC between
    router and replica, has four times the p99 behind HAProxy.
    """
    values = yaml.safe_load(config)["controller_options"]["runtime_env"]["env_vars"]
    return [{"name": name, "value": value} for name, value in values.items() if name != NOT_OF_PODS]


def jobs() -> dict[str, Json]:
    """The RayJobs by name. All GPU workers that can run at once are bounded by quota and queue, not here."""
    two_gpus = ray.gpu_workers("gpu", replicas=(2, 2, 2))
    one_cpu_worker = ray.cpu_workers("cpu", replicas=(1, 1, 1))  # two cores; the small cluster has no room for more
    return {
        "train": ray.job("train", TRAIN, two_gpus, queue="research", hours=6, tries=3),
        "tune": ray.job("tune", TUNE, two_gpus, queue="research", hours=12, tries=1),
        "evaluate": ray.job("evaluate", EVALUATE, queue="platform", hours=2, tries=2),
        "batch-predict": ray.job("batch-predict", PREDICT, one_cpu_worker, queue="platform", hours=6, tries=2),
        "pipeline": ray.job("pipeline", PIPELINE, two_gpus, queue="platform", hours=6, tries=3),
    }


def serve_patch(config: str) -> list[Json]:
    """What the small environment has otherwise: its serve config, and one worker that is enough for it."""
    service = ray.service(config, serve_env(config))
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["groupName"] == "serve"
    sizes = {"replicas": 1, "minReplicas": 1, "maxReplicas": 2}
    replace = {f"rayClusterConfig/workerGroupSpecs/0/{field}": number for field, number in sizes.items()}
    changes: dict[str, str | int] = {"serveConfigV2": config, **replace}
    return [{"op": "replace", "path": f"/spec/{path}", "value": value} for path, value in changes.items()]


def files() -> dict[Path, str]:
    """What is generated, by path."""
    production, staging = (serve_config(SERVE_CONFIGS[name]) for name in ("prod", "dev"))
    made: dict[str, Json | list[Json]] = {f"ray/rayjobs/{name}.yaml": job for name, job in jobs().items()}
    made |= {
        "schedules/pipeline-daily.yaml": ray.cron_job("pipeline-daily", DAILY, "pipeline", hours=8),
        "schedules/tune-weekly.yaml": ray.cron_job(
            "tune-weekly", WEEKLY, "tune", hours=14, entrypoint=TUNE_AND_PROMOTE
        ),
    }
    made |= {
        "ray/raycluster-dev.yaml": ray.dev_cluster(),
        "ray/rayservice.yaml": ray.service(production, serve_env(production)),
        "ray/examples/raycronjob.yaml": ray.ray_cron_job("pipeline-daily", DAILY, jobs()["pipeline"]),
        "overlays/dev/rayservice-patch.yaml": serve_patch(staging),
    }
    return {HERE / path: dump(obj) for path, obj in made.items()}


def main(words: list[str]) -> int:
    """The exit code."""
    different = [path for path, text in files().items() if not path.is_file() or path.read_text() != text]
    if words == ["--check"]:
        for path in different:
            print(f"{path.relative_to(ROOT)} is not what its sources say: run cluster/manifests/generate.py")
        return 1 if different else 0
    for path in different:
        path.write_text(files()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
