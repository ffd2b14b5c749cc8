"""Faults that a change of terraform/ might bring, and what the checks must say to each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.tools import ROOT

TERRAFORM = ROOT / "terraform"


@dataclass(frozen=True)
class Fault:
    """What is changed in which file of terraform/, and what the failing check says."""

    file: str
    old: str
    new: str
    says: str

    def plant(self, folder: Path) -> None:
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        assert text.count(self.old) == 1, f"{self.file} has {self.old!r} {text.count(self.old)} times"
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def copy_with(folder: Path, *faults: Fault) -> Path:
    """The folder as git has it, with the faults: settings of whoever works here do not reach the tests."""
    shutil.copytree(TERRAFORM, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.auto.tfvars"))
    for fault in faults:
        fault.plant(folder)
    return folder


# All in one copy: each is found by an assertion of its own.
FAULTS = {
    "public database": Fault(
        "modules/rds/main.tf", "publicly_accessible    = false", "publicly_accessible    = true",
        "modules/rds/main.tf: aws_db_instance.this.publicly_accessible is true",
    ),
    "unencrypted database": Fault(
        "modules/rds/main.tf", "storage_encrypted     = true", "storage_encrypted     = false",
        "modules/rds/main.tf: aws_db_instance.this.storage_encrypted is false",
    ),
    "database open to the internet": Fault(
        "modules/rds/main.tf", "referenced_security_group_id = var.client_group_id", 'cidr_ipv4 = "0.0.0.0/0"',
        "modules/rds/main.tf: aws_vpc_security_group_ingress_rule.nodes lets in more than port 5432 from the nodes",
    ),
    "database without TLS": Fault(
        "modules/rds/main.tf", 'name  = "rds.force_ssl"\n    value = "1"', 'name  = "rds.force_ssl"\n    value = "0"',
        "modules/rds/main.tf: aws_db_parameter_group.this.parameter: rds.force_ssl is not 1",
    ),
    "standard in one zone": Fault(
        "locals.tf", "db_multi_az       = true", "db_multi_az       = false",
        "locals.tf: profiles.standard.db_multi_az is false",
    ),
    "public bucket": Fault(
        "modules/s3/main.tf", "block_public_policy     = true", "block_public_policy     = false",
        "modules/s3/main.tf: aws_s3_bucket_public_access_block.this: all four are to be true",
    ),
    "unencrypted bucket": Fault(
        "modules/s3/main.tf", 'sse_algorithm     = "aws:kms"', 'sse_algorithm     = "AES256"',
        "modules/s3/main.tf: aws_s3_bucket_server_side_encryption_configuration.this: sse_algorithm",
    ),
    "bucket without TLS": Fault(
        "modules/s3/main.tf", '"aws:SecureTransport" = "false"', '"aws:SecureTransport" = "true"',
        "modules/s3/main.tf: aws_s3_bucket_policy.this does not deny requests without TLS",
    ),
    "unencrypted node disk": Fault(
        "modules/node_group/main.tf", "encrypted             = true", "encrypted             = false",
        "modules/node_group/main.tf: aws_launch_template.this.block_device_mappings.ebs: encrypted",
    ),
    "node role within reach of pods": Fault(
        "modules/node_group/main.tf", "http_put_response_hop_limit = 1", "http_put_response_hop_limit = 2",
        "modules/node_group/main.tf: aws_launch_template.this.metadata_options: http_tokens required,",
    ),
    "images that change under their tag": Fault(
        "modules/ecr/main.tf", '"IMMUTABLE"', '"MUTABLE"',
        "modules/ecr/main.tf: aws_ecr_repository.this.image_tag_mutability is not IMMUTABLE",
    ),
    "six GPU nodes": Fault(
        "main.tf", "nodes_max          = var.gpu_nodes_max", "nodes_max          = 6",
        "main.tf: module.gpu_nodes has 0 to 6 nodes, not 0 to gpu_nodes_max",
    ),
    "six GPU nodes allowed": Fault(
        "variables.tf", "var.gpu_nodes_max <= 5", "var.gpu_nodes_max <= 6",
        "The checkable object, var.gpu_nodes_max, was expected to report an error but did not",
    ),
    "GPU nodes on demand": Fault(
        "main.tf", '"SPOT"', '"ON_DEMAND"',
        "main.tf: module.gpu_nodes.capacity_type is ON_DEMAND, not SPOT",
    ),
    "Kubernetes API for everybody": Fault(
        "variables.tf", 'split("/", cidr)[1]) >= 16', 'split("/", cidr)[1]) >= 0',
        "The checkable object, var.public_access_cidrs, was expected to report an error but did not",
    ),
    "no private endpoint": Fault(
        "modules/eks/main.tf", "endpoint_private_access = true", "endpoint_private_access = false",
        "modules/eks/main.tf: aws_eks_cluster.this.vpc_config.endpoint_private_access is false",
    ),
    "NAT instance open to the internet": Fault(
        "modules/network/nat.tf", "cidr_blocks = [var.cidr]", 'cidr_blocks = ["0.0.0.0/0"]',
        "modules/network/nat.tf: aws_security_group.nat.ingress lets in more than the VPC",
    ),
    "public addresses": Fault(
        "modules/network/main.tf",
        "8, each.value)\n  map_public_ip_on_launch = false",
        "8, each.value)\n  map_public_ip_on_launch = true",
        "modules/network/main.tf: map_public_ip_on_launch of a subnet is true",
    ),
    "a role that reaches too far": Fault(
        "modules/pod_iam/storage.tf", 'write = ["requests"]', 'write = ["requests", "mlflow"]',
        "modules/pod_iam/storage.tf: local.storage: an account reaches other prefixes",
    ),
    "a role that anybody takes": Fault(
        "modules/pod_iam/main.tf", 'kubernetes-service-account" = parts.name', 'kubernetes-service-account" = "*"',
        "modules/pod_iam/main.tf: aws_iam_role.this.assume_role_policy: a role can be taken by another service account",
    ),
    "a key that never rotates": Fault(
        "modules/kms/main.tf", "enable_key_rotation     = true", "enable_key_rotation     = false",
        "modules/kms/main.tf: aws_kms_key.this.enable_key_rotation is false",
    ),
    "a budget above the promise": Fault(
        "locals.tf", "budget_usd        = 200", "budget_usd        = 250",
        "locals.tf: profiles.lean.budget_usd is 250, not 200",
    ),
    "a budget that tells nobody": Fault(
        "modules/budget/main.tf", "subscriber_email_addresses = var.alert_emails", "subscriber_email_addresses = []",
        "modules/budget/main.tf: aws_budgets_budget.this.notification: those of alert_emails are not told",
    ),
    "a profile dearer than promised": Fault(
        "modules/cost/outputs.tf", "sum(values(local.lines)) <= var.promised_usd", "true",
        "The checkable object, output.total, was expected to report an error but did not",
    ),
    "a lean profile that grew": Fault(
        "locals.tf", "logs_gb = 6,", "logs_gb = 7,",
        "README.md: the total of lean is not 189.08",
    ),
    "a price of old in the README": Fault(
        "README.md", "| Logs | 3.00 |", "| Logs | 2.00 |",
        "README.md: the cost table, column lean, is not",
    ),
}  # fmt: skip

# Found before any assertion is reached, so it has a copy of its own.
MISSPELT = Fault(
    "modules/rds/main.tf", "storage_encrypted     = true", "storage_encypted      = true",
    'An argument named "storage_encypted" is not expected here',
)  # fmt: skip
