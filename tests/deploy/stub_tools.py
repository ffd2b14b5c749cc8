"""One program that plays aws, helm, kubectl, terraform and curl: it records what it was asked and answers from a world.

The world is a file beside it. What a call changes is in the world afterwards, so a second run of a script meets
what the first one made. `fail` in the world names the call that fails: "PROGRAM words", and the how-manieth.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import sys
import time


class Lazy:
    """A module that is imported where it is needed: each doubles the time of a call, and there are thousands."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, word: str) -> object:
        return getattr(__import__(self._name), word)


hashlib, json, re = Lazy("hashlib"), Lazy("json"), Lazy("re")
World = dict  # typing, pathlib and contextlib would take as long
HERE = os.path.dirname(os.path.abspath(__file__))
CHANGING = (
    "aws s3api create- put-|aws secretsmanager put- update- rotate-|aws eks update-nodegroup-config|aws s3 cp|"
    "helm upgrade uninstall|kubectl apply create delete patch annotate scale rollout exec|terraform apply|"
    "curl POST PATCH"
)
JOB = """{"metadata": {"generateName": "evaluate-"}, "spec": {"entrypoint": "python jobs/evaluate.py",
    "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {"num-cpus": "0"}}, "workerGroupSpecs": []}}}"""
CLOSED = {"metadata": {"name": "nothing-else"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}


class RefusedError(Exception):
    """The program ends with exit code 1, or another, and says this."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Opened:
    """The world, for one program at a time; written back at the end."""

    def __enter__(self) -> World:
        self.file = open(os.path.join(HERE, "world"), "r+b")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.world = marshal.load(self.file)
        return self.world

    def __exit__(self, *_: object) -> None:
        self.file.seek(0)
        self.file.truncate()
        marshal.dump(self.world, self.file)
        self.file.close()


def text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def as_text(answer: object) -> str:
    """Text as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else json.dumps(answer)


def changes(program: str, words: list[str]) -> bool:
    """Whether the call changes something outside this machine."""
    if "--dryrun" in words or words[:2] == ["rollout", "status"]:
        return False
    for rule in CHANGING.split("|"):
        of, *rest = rule.split()
        if program == of and of == "aws" and words[:1] == rest[:1] and words[1].startswith(tuple(rest[1:])):
            return True
        if program == of and of == "curl" and "/api/" in words[-1] and option(words, "--request") in rest:
            return True
        if program == of and of not in ("aws", "curl") and words and words[0] in rest:
            return True
    return False


def option(words: list[str], name: str) -> str:
    """What follows an option, or ''."""
    return words[words.index(name) + 1] if name in words else ""


def terraform(world: World, words: list[str], _: str) -> str:
    verb, given = words[0], sorted(word for word in words if "=" in word and not word.startswith("-"))
    if verb == "init":
        os.makedirs(os.environ["TF_DATA_DIR"], exist_ok=True)
    if verb == "plan":
        (out,) = [word[5:] for word in words if word.startswith("-out=")] or [""]
        if out:
            with open(out, "w") as file:
                json.dump(given, file)
        differs = world["terraform"] != given and "-detailed-exitcode" in words
        raise RefusedError("plan", 2 if differs else 0)
    if verb == "apply":
        plan = words[-1]
        world["terraform"] = json.loads(text_of(plan)) if plan.endswith(".tfplan") else given
        if plan.endswith("/destroy.tfplan"):
            world["terraform"] = None
    if verb == "show":
        return json.dumps({"resource_changes": world["planned"]})
    if verb == "output":
        return json.dumps(
            {key: {"value": value} for key, value in world["outputs"].items()} if world["terraform"] else {}
        )
    if verb == "state":
        return "module.eks" if world["terraform"] else ""
    return ""


def aws(world: World, words: list[str], stdin: str) -> str:
    service, verb = words[:2]
    if service == "secretsmanager":
        return secrets_manager(world, verb, words, stdin)
    bucket = world["bucket"]
    if (service, verb) == ("s3api", "get-bucket-versioning"):
        return "Enabled" if bucket["versioning"] else "None"
    if (service, verb) == ("s3api", "head-bucket") and not bucket["exists"]:
        raise RefusedError("404", 254)
    if (service, verb) == ("s3api", "create-bucket"):
        bucket["exists"] = True
    if (service, verb) == ("s3api", "put-bucket-versioning"):
        bucket["versioning"] = True
    if (service, verb) == ("service-quotas", "get-service-quota"):
        if world["quota"] is None:
            raise RefusedError("NoSuchResourceException", 254)
        return str(world["quota"])
    if (service, verb) == ("ecr", "describe-images") and not world["images"]:
        raise RefusedError("ImageNotFoundException", 254)
    if (service, verb) == ("eks", "update-nodegroup-config"):
        world["nodegroup"] = {
            k: int(v) for k, v in (p.split("=") for p in option(words, "--scaling-config").split(","))
        }
    answers = {
        "sts get-caller-identity": world["account"],
        "acm describe-certificate": world["certificate"],
        "eks describe-cluster-versions": "1.35\t1.36",
        "eks describe-nodegroup": world["nodegroup"],
        "eks describe-cluster": "ACTIVE" if world["terraform"] else "",
        "service-quotas get-aws-default-service-quota": "5.0",
        "ec2 describe-instance-type-offerings": world["offered"],
    }
    return as_text(answers.get(f"{service} {verb}", ""))


def secrets_manager(world: World, verb: str, words: list[str], stdin: str) -> str:
    if verb == "get-random-password":
        world["secrets"].append(os.urandom(32).hex()[: int(option(words, "--password-length"))])
        return str(world["secrets"][-1])
    versions = world["vault"].setdefault(option(words, "--secret-id"), {})
    if verb == "describe-secret":
        stages = {v["id"]: [s for s in versions if versions[s]["id"] == v["id"]] for v in versions.values()}
        return json.dumps(stages or None)
    if verb == "put-secret-value":
        assert option(words, "--secret-string") == "file:///dev/stdin", "a secret's value is no argument"
        versions[option(words, "--version-stages")] = {"id": os.urandom(8).hex(), "value": stdin}
    if verb == "get-secret-value":
        stage = option(words, "--version-stage")
        if stage not in versions:
            raise RefusedError("ResourceNotFoundException", 254)
        return str(versions[stage]["value"])
    if verb == "update-secret-version-stage":
        stage, to = option(words, "--version-stage"), option(words, "--move-to-version-id")
        moved = [v for v in versions.values() if v["id"] == to]
        versions.pop(stage)
        if moved:
            versions[stage] = moved[0]
    return ""


def helm(world: World, words: list[str], _: str) -> str:
    releases = world["releases"]
    if words[0] == "status":
        if words[1] not in releases:
            raise RefusedError("release: not found")
        return json.dumps({"info": {"status": "deployed", "description": releases[words[1]]}})
    if words[:2] == ["show", "chart"] and option(words, "--version") in world["no_charts"]:
        raise RefusedError("Error: chart not found")
    if words[:2] == ["show", "crds"]:
        return "kind: CustomResourceDefinition" if words[2] == "kuberay-operator" else ""
    if words[0] == "upgrade":
        releases[words[2]] = option(words, "--description")
        world["occupied"].append(option(words, "--namespace"))
    if words[0] == "uninstall":
        releases.pop(words[1], None)
    return ""


def kubectl(world: World, words: list[str], stdin: str) -> str:
    verb, what = words[0], " ".join(words[1:3])
    file = option(words, "-f")
    if verb == "port-forward":
        print("Forwarding from 127.0.0.1:40001 -> 5000", flush=True)
        raise RefusedError("", -1)  # stays until it is ended
    if verb == "wait" and "deployment" in words and option(words, "--namespace") not in world["occupied"]:
        raise RefusedError("error: no matching resources found")
    if verb == "diff" and digest_of(text_of(file)) not in world["applied"]:
        raise RefusedError("differs")
    if verb == "apply":
        world["applied"].append(digest_of(text_of(file)))
    if verb == "create" and file == "-":
        made = json.loads(stdin)
        world["objects"].append(f"{made['kind']} {made['metadata']['name']}".lower())
    elif verb == "create" and file:
        return "rayjob.ray.io/verify-x1"
    elif verb == "create":
        world["objects"].append(what)
    looked_up = verb == "get" and words[1] in ("secret", "namespace", "configmap") and words[2] != "rayjob-templates"
    if looked_up and what not in world["objects"]:
        raise RefusedError("NotFound")
    if verb == "annotate":
        world["refreshed"] += 1
    return str(get(world, words)) if verb == "get" else ""


def get(world: World, words: list[str]) -> str:
    path = option(words, "--output")
    if words[1] == "externalsecret":
        return "True" if "Ready" in path else str(world["refreshed"])
    answers = {
        "networkpolicy": {"items": world["policies"]},
        "daemonset": {"args": ["--enable-network-policy=true"]},
        "ingress": "balancer.example.org",
        "rayservice": world["suspend"],
        "rayjob.ray.io/verify-x1": world["job"],
        "configmap": {"data": {"evaluate.yaml": JOB}},
    }
    return as_text(answers.get(words[1], ""))


def curl(world: World, words: list[str], stdin: str) -> str:
    url, config = words[-1], dict(re.findall(r'^(\w+) = "(.*)"$', stdin, re.M))
    if "--tls-max" in words:
        raise RefusedError("", 35)
    if url.startswith("http://api."):
        return "301 https://api.example.org/livez"
    if "/api/2.0/" in url or url.endswith("/health"):
        return "{}\n" + str(mlflow(world, option(words, "--request"), url, config))
    if url.endswith("/livez"):
        return "200"
    digest = digest_of(config.get("header", "").removeprefix("Authorization: Bearer "))
    known = any(digest in version["value"] for version in world["vault"]["rayapp-dev/serving"].values())
    return "200" if known and "header" in config else "401"


def mlflow(world: World, method: str, url: str, config: dict[str, str]) -> int:
    users = world["users"]
    if not users and (made := world["vault"].get("rayapp-dev/mlflow", {}).get("AWSCURRENT")):
        users["admin"] = json.loads(made["value"])["admin_password"]  # the server's first start
    if url.endswith("/health"):
        return 200
    name, _, password = config.get("user", ":").partition(":")
    if users.get(name) != password:
        return 401
    data = json.loads(re.sub(r"\\(.)", r"\1", config["data"])) if "data" in config else {}
    if "/users/get?" in url:
        return 200 if url.split("username=")[1] in users else 404
    if method == "PATCH" and data["username"] == name and data.get("current_password") != password:
        return 400
    if "/users/" in url and method in ("POST", "PATCH"):
        users[data["username"]] = data["password"]
    return world["champion"] if "alias" in url else 200


def main(program: str, words: list[str]) -> int:
    """The exit code of the call."""
    reads = "-" in words[1:] or "--stdin" in words or any("/dev/stdin" in word for word in words)
    stdin = sys.stdin.read() if reads else ""
    words = [word for word in words if not word.startswith("-chdir=")]
    with Opened() as world:
        if words == ["--version"] or words[:1] == ["version"]:
            print(world["versions"][program])
            return 0
        world["calls"].append({"program": program, "words": words, "stdin": stdin, "changes": changes(program, words)})
        if world["fail"] and world["fail"][0] in " ".join([program, *words]):
            world["fail"][1] -= 1
            if world["fail"][1] == 0:
                print(f"{program}: planned failure", file=sys.stderr)
                return 1
        player = globals()[program]
        try:
            print(player(world, words, stdin))
            return 0
        except RefusedError as refused:
            print(refused, file=sys.stderr)
            code = refused.code
    if code == -1:
        time.sleep(60)
    return code
