# The estimate of a month: what is always on, and the usage that locals.tf of the root assumes. GPU hours come on top.
locals {
  node_price = { "t3a.large" = local.price.t3a_large_hour, "m6a.xlarge" = local.price.m6a_xlarge_hour }
  db_price   = { "db.t4g.micro" = local.price.db_t4g_micro_hour, "db.t4g.small" = local.price.db_t4g_small_hour }
  copies     = var.profile.db_multi_az ? 2 : 1 # of the database: the standby costs as much
  usage      = var.profile.usage
  nat_count  = max(var.profile.nat_gateways, 1)
  nat_disk   = 8
  disks_gb   = var.profile.cpu_nodes_min * var.profile.node_disk_gb + local.usage.volumes_gb
  nat = var.profile.nat_gateways == 0 ? (
    local.price.t4g_nano_hour * local.month_hours + local.nat_disk * local.price.ebs_gp3_gb
    ) : (
    var.profile.nat_gateways * local.price.nat_gateway_hour * local.month_hours + local.usage.nat_gb * local.price.nat_gateway_gb
  )

  exact = {
    "EKS control plane"     = local.price.eks_cluster_hour * local.month_hours
    "CPU nodes"             = var.profile.cpu_nodes_min * local.node_price[var.profile.cpu_instance_type] * local.month_hours
    "Disks"                 = local.disks_gb * local.price.ebs_gp3_gb
    "NAT"                   = local.nat
    "Public IPv4 addresses" = (local.nat_count + var.profile.zones) * local.price.public_ipv4_hour * local.month_hours # NAT and one public balancer
    "Load balancers"        = (var.profile.load_balancers * local.price.load_balancer_hour + local.usage.capacity_units * local.price.capacity_unit_hour) * local.month_hours
    "Database"              = local.copies * (local.db_price[var.profile.db_instance_class] * local.month_hours + var.profile.db_storage_gb * local.price.db_gp3_gb)
    "Bucket and images"     = local.usage.bucket_gb * local.price.s3_gb + local.usage.images_gb * local.price.ecr_gb
    "Logs"                  = local.usage.logs_gb * local.price.log_gb
    "Key and secrets"       = local.price.kms_key + var.secret_count * local.price.secret
  }
  lines = { for name, usd in local.exact : name => floor(usd * 100 + 0.5) / 100 }
}
