# EKS and its nodes.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name                 = "rayapp-dev"
  cluster_name         = "rayapp-dev"
  kubernetes_version   = "1.36"
  subnet_ids           = ["subnet-1", "subnet-2"]
  kms_key_arn          = "arn:aws:kms:us-east-1:111122223333:key/1"
  admin_principal_arns = ["arn:aws:iam::111122223333:role/admin"]
  public_access_cidrs  = []
  log_days             = 14
  log_types            = ["audit", "authenticator"]
  deletion_protection  = true
}

run "cluster" {
  command = plan
  module {
    source = "./modules/eks"
  }

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API"
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.access_config.authentication_mode is not API."
  }
  assert {
    condition     = !aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.access_config.bootstrap_cluster_creator_admin_permissions: admins are those listed."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.vpc_config.endpoint_private_access is false."
  }
  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.vpc_config.endpoint_public_access is true without a list of networks."
  }
  assert {
    condition     = toset(aws_eks_cluster.this.enabled_cluster_log_types) == toset(["audit", "authenticator"])
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.enabled_cluster_log_types is not log_types."
  }
  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == var.kms_key_arn && aws_cloudwatch_log_group.this.retention_in_days == 14
    error_message = "modules/eks/main.tf: aws_cloudwatch_log_group.this: kms_key_id or retention_in_days."
  }
  assert {
    condition = (
      try(aws_eks_cluster.this.encryption_config[0].provider[0].key_arn, "") == var.kms_key_arn
      && try(contains(aws_eks_cluster.this.encryption_config[0].resources, "secrets"), false)
    )
    error_message = "modules/eks/main.tf: aws_eks_cluster.this.encryption_config: Kubernetes secrets are not encrypted with the key."
  }
  assert {
    condition     = aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD" && aws_eks_cluster.this.deletion_protection
    error_message = "modules/eks/main.tf: aws_eks_cluster.this: upgrade_policy.support_type or deletion_protection."
  }
  assert {
    condition     = toset(keys(aws_eks_access_entry.admin)) == toset(var.admin_principal_arns) && length(aws_eks_access_policy_association.admin) == 1
    error_message = "modules/eks/main.tf: aws_eks_access_entry.admin: not those of admin_principal_arns."
  }
}

run "gpu_nodes" {
  module {
    source = "./modules/node_group"
  }
  variables {
    name           = "gpu"
    role_arn       = "arn:aws:iam::111122223333:role/node"
    ami_type       = "AL2023_x86_64_NVIDIA"
    capacity_type  = "SPOT"
    instance_types = ["g6.xlarge", "g5.xlarge"]
    nodes_min      = 0
    nodes_max      = 5
    disk_gb        = 120
    disk_mb_per_s  = 500
    labels         = { "rayapp.io/pool" = "gpu" }
    taint          = { key = "nvidia.com/gpu", value = "present" }
    resources      = { "nvidia.com/gpu" = "1" }
  }

  assert {
    condition     = tobool(aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted) && aws_launch_template.this.block_device_mappings[0].ebs[0].volume_type == "gp3"
    error_message = "modules/node_group/main.tf: aws_launch_template.this.block_device_mappings.ebs: encrypted gp3."
  }
  assert {
    condition     = aws_launch_template.this.block_device_mappings[0].ebs[0].throughput == 500
    error_message = "modules/node_group/main.tf: aws_launch_template.this.block_device_mappings.ebs.throughput is not disk_mb_per_s: a paid GPU waits for its image."
  }
  assert {
    condition     = length(aws_launch_template.this.credit_specification) == 0
    error_message = "modules/node_group/main.tf: aws_launch_template.this.credit_specification: EC2 refuses it for what is no T instance."
  }
  assert {
    condition = (
      aws_launch_template.this.metadata_options[0].http_tokens == "required"
      && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 1
    )
    error_message = "modules/node_group/main.tf: aws_launch_template.this.metadata_options: http_tokens required, http_put_response_hop_limit 1."
  }
  assert {
    condition = output.nodes.tags == {
      "k8s.io/cluster-autoscaler/node-template/label/rayapp.io/pool"                 = "gpu"
      "k8s.io/cluster-autoscaler/node-template/label/eks.amazonaws.com/capacityType" = "SPOT"
      "k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu"             = "1"
      "k8s.io/cluster-autoscaler/node-template/taint/nvidia.com/gpu"                 = "present:NoSchedule"
    }
    error_message = "modules/node_group/main.tf: aws_autoscaling_group_tag.this: ${jsonencode(output.nodes.tags)} does not tell the autoscaler what a node of the empty group is."
  }
  assert {
    condition     = aws_eks_node_group.this.scaling_config[0].min_size == 0 && aws_eks_node_group.this.scaling_config[0].max_size == 5
    error_message = "modules/node_group/main.tf: aws_eks_node_group.this.scaling_config is not what was asked for."
  }
}

run "cpu_nodes" {
  module {
    source = "./modules/node_group"
  }
  variables {
    name           = "cpu-a"
    role_arn       = "arn:aws:iam::111122223333:role/node"
    ami_type       = "AL2023_x86_64_STANDARD"
    capacity_type  = "ON_DEMAND"
    instance_types = ["t3a.large"]
    nodes_min      = 1
    nodes_max      = 6
    disk_gb        = 50
    labels         = { "rayapp.io/pool" = "cpu" }
  }

  assert {
    condition     = try(aws_launch_template.this.credit_specification[0].cpu_credits, "") == "standard"
    error_message = "modules/node_group/main.tf: aws_launch_template.this.credit_specification: a T instance is unlimited without it, and costs what the estimate does not know."
  }
}
