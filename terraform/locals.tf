# What the two profiles are. README.md says what lean gives up; modules/cost reckons what both cost.
locals {
  profiles = {
    lean = {
      zones             = 2 # the least that EKS and load balancers take
      nat_gateways      = 0 # a NAT instance instead
      cpu_instance_type = "t3a.large"
      cpu_zones         = 1
      cpu_nodes_min     = 1
      cpu_nodes_max     = 6 # what always runs, Ray awake, and one job beside it (tests/deploy/test_nodes.py)
      db_instance_class = "db.t4g.micro"
      db_multi_az       = false
      db_storage_gb     = 20
      load_balancers    = 1 # api.DOMAIN; the other two by kubectl port-forward
      log_days          = 14
      log_types         = ["audit", "authenticator"] # all five of a cluster with operators are many GB a month
      budget_usd        = 200
      usage             = { volumes_gb = 10, bucket_gb = 30, images_gb = 20, logs_gb = 6, nat_gb = 50, capacity_units = 0.5 }
    }
    standard = {
      zones             = 3
      nat_gateways      = var.nat_gateway_per_zone ? 3 : 1
      cpu_instance_type = "m6a.xlarge" # a burstable one would throttle what serves, or cost what nobody planned
      cpu_zones         = 3
      cpu_nodes_min     = 3
      cpu_nodes_max     = 12
      db_instance_class = "db.t4g.small"
      db_multi_az       = true
      db_storage_gb     = 40
      load_balancers    = 2 # rayapp-public and rayapp-internal
      log_days          = 90
      log_types         = ["api", "audit", "authenticator", "controllerManager", "scheduler"]
      budget_usd        = 700
      usage             = { volumes_gb = 60, bucket_gb = 200, images_gb = 50, logs_gb = 20, nat_gb = 50, capacity_units = 2 }
    }
  }
  profile      = local.profiles[var.profile]
  cluster_name = "${var.name}-${var.environment}"
  node_disk_gb = 50
  budget_usd   = coalesce(var.budget_usd, local.profile.budget_usd)
  account_id   = data.aws_caller_identity.current.account_id
  zones        = [for letter in slice(var.zone_letters, 0, local.profile.zones) : "${var.region}${letter}"]
  secret_names = { mlflow = "${local.cluster_name}/mlflow", serving = "${local.cluster_name}/serving" }
}

data "aws_caller_identity" "current" {}
