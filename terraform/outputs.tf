output "region" {
  value = var.region
}

output "cluster_name" {
  value = module.eks.cluster_name
}

output "profile" {
  value = var.profile
}

output "domain" {
  value = var.domain
}

output "certificate_arn" {
  value = var.certificate_arn
}

output "vpc_id" {
  value = module.network.vpc_id
}

output "vpc_cidr" {
  description = "Of the database and the load balancers, for NetworkPolicies."
  value       = var.vpc_cidr
}

output "bucket" {
  value = module.s3.bucket
}

output "ecr_repository_urls" {
  description = "By image: rayapp, mlflow. What stands before the last slash is the registry of the manifests."
  value       = module.ecr.urls
}

output "database_host" {
  value = module.rds.host
}

output "database_port" {
  value = module.rds.port
}

output "database_name" {
  value = module.rds.database_name
}

output "database_secret_arn" {
  description = "Secret that RDS keeps and rotates: username, password."
  value       = module.rds.secret_arn
}

output "mlflow_secret_name" {
  description = "Made empty; cluster/scripts/setup fills it."
  value       = module.secrets.names["mlflow"]
}

output "serving_secret_name" {
  description = "Made empty; cluster/scripts/setup fills it."
  value       = module.secrets.names["serving"]
}

output "pod_iam" {
  description = "With irsa the scripts annotate the service accounts with pod_role_arns."
  value       = var.pod_iam
}

output "pod_role_arns" {
  description = "By namespace/serviceaccount."
  value       = module.pod_iam.role_arns
}

output "gpu_node_group_name" {
  value = module.gpu_nodes.name
}

output "budget_usd" {
  value = module.budget.limit_usd
}

output "monthly_cost_usd" {
  description = "Estimate by line, us-east-1, without GPU hours."
  value       = module.cost.lines
}

output "gpu_hour_usd" {
  description = "What an hour of a GPU node costs at most: the on-demand price by instance type."
  value       = module.cost.gpu_hour_usd
}

output "estimated_monthly_usd" {
  description = "Sum of monthly_cost_usd."
  value       = module.cost.total
}
