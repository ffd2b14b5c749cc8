# Both profiles as wholes: what reaches the modules, what comes out, and what it costs.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  environment          = "dev"
  profile              = "lean"
  domain               = "ml.example.org"
  certificate_arn      = "arn:aws:acm:us-east-1:111122223333:certificate/0a1b2c3d-0000-0000-0000-000000000000"
  admin_principal_arns = ["arn:aws:iam::111122223333:role/platform-admin"]
  public_access_cidrs  = ["203.0.113.0/24"]
  alert_emails         = ["platform@example.org"]
}

run "lean" {
  command = plan

  assert {
    condition     = output.estimated_monthly_usd <= 200
    error_message = "locals.tf: profiles.lean costs ${output.estimated_monthly_usd} USD a month; at most 200 is promised."
  }
  assert {
    condition     = output.budget_usd == 200
    error_message = "locals.tf: profiles.lean.budget_usd is ${output.budget_usd}, not 200."
  }
  assert {
    condition = toset([for notice in module.budget.notifications : "${notice.notification_type} ${join(",", notice.subscriber_email_addresses)}"]) == toset([
      "ACTUAL platform@example.org", "FORECASTED platform@example.org",
    ])
    error_message = "modules/budget/main.tf: aws_budgets_budget.this.notification: those of alert_emails are not told of the actual and the forecast costs."
  }
  assert {
    condition     = module.network.nat.instances == 1 && module.network.nat.gateways == 0
    error_message = "locals.tf: profiles.lean has ${jsonencode(module.network.nat)}: one NAT instance and no gateway is what the estimate reckons with."
  }
  assert {
    condition     = keys(module.cpu_nodes) == ["a"] && module.cpu_nodes["a"].nodes.min == 1 && module.cpu_nodes["a"].nodes.capacity_type == "ON_DEMAND"
    error_message = "main.tf: module.cpu_nodes is ${jsonencode({ for zone, group in module.cpu_nodes : zone => group.nodes })} in lean, not one ON_DEMAND node in one zone: a volume in the other would find none."
  }
  assert {
    condition     = alltrue([for line, usd in output.monthly_cost_usd : can(regex("\\| ${line} \\| ${format("%.2f", usd)} \\|", file("README.md")))])
    error_message = "README.md: the cost table, column lean, is not ${jsonencode(output.monthly_cost_usd)}."
  }
  assert {
    condition     = strcontains(file("README.md"), "| **Total** | **${format("%.2f", output.estimated_monthly_usd)}** |")
    error_message = "README.md: the total of lean is not ${format("%.2f", output.estimated_monthly_usd)}."
  }
}

run "standard" {
  command = plan
  variables {
    environment = "prod"
    profile     = "standard"
  }

  assert {
    condition     = module.rds.multi_az
    error_message = "locals.tf: profiles.standard.db_multi_az is false: the database must survive the loss of a zone."
  }
  assert {
    condition     = module.network.nat.gateways == 1 && module.network.nat.instances == 0 && module.network.nat.zones == 3
    error_message = "locals.tf: profiles.standard has ${jsonencode(module.network.nat)}, not one NAT gateway and three zones."
  }
  assert {
    condition     = keys(module.cpu_nodes) == ["a", "b", "c"] && alltrue([for group in module.cpu_nodes : group.nodes.min == 1 && group.nodes.capacity_type == "ON_DEMAND"])
    error_message = "main.tf: module.cpu_nodes is ${jsonencode({ for zone, group in module.cpu_nodes : zone => group.nodes })} in standard, not a group of at least one ON_DEMAND node in each zone."
  }
  assert {
    condition     = output.budget_usd == 700 && output.budget_usd > output.estimated_monthly_usd
    error_message = "locals.tf: profiles.standard.budget_usd is ${output.budget_usd}; it must be 700 and above the estimate."
  }
  assert {
    condition     = alltrue([for line, usd in output.monthly_cost_usd : can(regex("\\| ${line} \\| [0-9.]+ \\| ${format("%.2f", usd)} \\|", file("README.md")))])
    error_message = "README.md: the cost table, column standard, is not ${jsonencode(output.monthly_cost_usd)}."
  }
  assert {
    condition     = can(regex("\\| \\*\\*Total\\*\\* \\| [0-9.*]+ \\| \\*\\*${format("%.2f", output.estimated_monthly_usd)}\\*\\* \\|", file("README.md")))
    error_message = "README.md: the total of standard is not ${format("%.2f", output.estimated_monthly_usd)}."
  }
  assert {
    condition     = length(regexall("\n\\| [A-Za-z0-9 ]+ \\| [0-9]+\\.[0-9]{2} \\| [0-9]+\\.[0-9]{2} \\|", file("README.md"))) == length(output.monthly_cost_usd)
    error_message = "README.md: the cost table has lines that modules/cost does not know."
  }
}

# What is true of both is asked of one, with every switch moved away from its default.
run "both" {
  variables {
    environment          = "prod"
    profile              = "standard"
    pod_iam              = "irsa"
    nat_gateway_per_zone = true
    gpu_nodes_max        = 3
  }

  assert {
    condition     = module.gpu_nodes.nodes.capacity_type == "SPOT"
    error_message = "main.tf: module.gpu_nodes.capacity_type is ${module.gpu_nodes.nodes.capacity_type}, not SPOT."
  }
  assert {
    condition     = module.gpu_nodes.nodes.min == 0 && module.gpu_nodes.nodes.max == 3
    error_message = "main.tf: module.gpu_nodes has ${module.gpu_nodes.nodes.min} to ${module.gpu_nodes.nodes.max} nodes, not 0 to gpu_nodes_max."
  }
  assert {
    condition     = module.gpu_nodes.nodes.ami_type == "AL2023_x86_64_NVIDIA" && module.gpu_nodes.nodes.instance_types[0] == "g6.xlarge"
    error_message = "main.tf: module.gpu_nodes is ${jsonencode(module.gpu_nodes.nodes)}: an image with the NVIDIA driver, g6.xlarge first."
  }
  assert {
    condition = anytrue([for taint in module.gpu_nodes.nodes.taints :
    taint.key == "nvidia.com/gpu" && taint.value == "present" && taint.effect == "NO_SCHEDULE"])
    error_message = "main.tf: module.gpu_nodes.taint is missing: pods without GPUs would land there."
  }
  assert {
    condition     = module.gpu_nodes.nodes.labels["rayapp.io/pool"] == "gpu" && alltrue([for group in module.cpu_nodes : group.nodes.labels["rayapp.io/pool"] == "cpu"])
    error_message = "main.tf: labels of module.cpu_nodes or module.gpu_nodes: rayapp.io/pool is what the pods select."
  }
  assert {
    condition     = module.gpu_nodes.nodes.labels["k8s.amazonaws.com/accelerator"] == "nvidia"
    error_message = "main.tf: module.gpu_nodes.labels: without k8s.amazonaws.com/accelerator the autoscaler starts another GPU node until the first one announces its GPU."
  }
  assert {
    condition     = module.eks.endpoint.private && module.eks.endpoint.public && module.eks.endpoint.cidrs == toset(["203.0.113.0/24"])
    error_message = "main.tf: module.eks has the endpoint ${jsonencode(module.eks.endpoint)}: private, and public for public_access_cidrs."
  }
  assert {
    condition     = module.addons_for_nodes.configurations["vpc-cni"] == jsonencode({ enableNetworkPolicy = "true" })
    error_message = "main.tf: module.addons_for_nodes.addons.vpc-cni: without enableNetworkPolicy the NetworkPolicies do nothing."
  }
  assert {
    condition     = module.network.nat.gateways == 3
    error_message = "locals.tf: nat_gateway_per_zone makes ${module.network.nat.gateways} gateways, not 3."
  }
  assert {
    condition     = output.cluster_name == "rayapp-prod" && output.bucket == "rayapp-prod-111122223333"
    error_message = "locals.tf: cluster_name is ${output.cluster_name}, bucket ${output.bucket}."
  }
  assert {
    condition     = output.mlflow_secret_name == "rayapp-prod/mlflow" && output.serving_secret_name == "rayapp-prod/serving"
    error_message = "locals.tf: secret_names are ${output.mlflow_secret_name} and ${output.serving_secret_name}."
  }
  assert {
    condition     = output.gpu_node_group_name == "gpu" && output.database_name == "mlflow" && output.database_port == 5432
    error_message = "outputs.tf: gpu_node_group_name, database_name or database_port."
  }
  assert {
    condition     = output.pod_iam == "irsa" && output.vpc_cidr == "10.40.0.0/16"
    error_message = "outputs.tf: pod_iam is ${output.pod_iam}, vpc_cidr ${output.vpc_cidr}."
  }
  assert {
    condition = keys(output.ecr_repository_urls) == ["mlflow", "rayapp"] && keys(output.pod_role_arns) == [
      "airflow/airflow", "external-secrets/external-secrets", "kube-system/aws-load-balancer-controller", "kube-system/cluster-autoscaler",
      "kube-system/ebs-csi-controller-sa", "mlflow/mlflow", "rayapp/ray-jobs", "rayapp/ray-serve",
    ]
    error_message = "outputs.tf: ecr_repository_urls has ${jsonencode(keys(output.ecr_repository_urls))}, pod_role_arns ${jsonencode(keys(output.pod_role_arns))}."
  }
}
