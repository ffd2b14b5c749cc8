module "kms" {
  source = "./modules/kms"

  name       = local.cluster_name
  account_id = local.account_id
  region     = var.region
}

module "network" {
  source = "./modules/network"

  name         = local.cluster_name
  region       = var.region
  cidr         = var.vpc_cidr
  zones        = local.zones
  nat_gateways = local.profile.nat_gateways
  kms_key_arn  = module.kms.key_arn
  log_days     = local.profile.log_days
}

module "eks" {
  source = "./modules/eks"

  name                 = local.cluster_name
  kubernetes_version   = var.kubernetes_version
  subnet_ids           = module.network.private_subnet_ids
  kms_key_arn          = module.kms.key_arn
  admin_principal_arns = var.admin_principal_arns
  public_access_cidrs  = var.public_access_cidrs
  log_days             = local.profile.log_days
  log_types            = local.profile.log_types
  deletion_protection  = var.deletion_protection
}

# A node is not ready without these, so they come before the nodes.
module "addons_for_nodes" {
  source = "./modules/addons"

  cluster_name = module.eks.cluster_name
  addons = {
    vpc-cni                = { configuration = jsonencode({ enableNetworkPolicy = "true" }) }
    kube-proxy             = {}
    eks-pod-identity-agent = {}
  }
}

# A group has one zone: a volume stays in its own, and of a group with several the autoscaler cannot choose where it grows.
module "cpu_nodes" {
  source     = "./modules/node_group"
  depends_on = [module.addons_for_nodes]
  for_each   = { for at in range(local.profile.cpu_zones) : var.zone_letters[at] => module.network.private_subnet_ids[at] }

  name               = "cpu-${each.key}"
  cluster_name       = module.eks.cluster_name
  kubernetes_version = var.kubernetes_version
  role_arn           = module.eks.node_role_arn
  subnet_ids         = [each.value]
  ami_type           = "AL2023_x86_64_STANDARD"
  capacity_type      = "ON_DEMAND"
  instance_types     = [local.profile.cpu_instance_type]
  nodes_min          = local.profile.cpu_nodes_min / local.profile.cpu_zones
  nodes_max          = local.profile.cpu_nodes_max / local.profile.cpu_zones
  disk_gb            = local.node_disk_gb
  labels             = { "rayapp.io/pool" = "cpu" }
}

module "gpu_nodes" {
  source     = "./modules/node_group"
  depends_on = [module.addons_for_nodes]

  name               = "gpu"
  cluster_name       = module.eks.cluster_name
  kubernetes_version = var.kubernetes_version
  role_arn           = module.eks.node_role_arn
  subnet_ids         = module.network.private_subnet_ids
  ami_type           = "AL2023_x86_64_NVIDIA"
  capacity_type      = "SPOT"
  instance_types     = var.gpu_instance_types
  nodes_min          = 0
  nodes_max          = var.gpu_nodes_max
  disk_gb            = 120 # images with CUDA take many GB, and two of them may be there
  disk_mb_per_s      = 500 # unpacking one at gp3's 125 takes more than a minute of a paid GPU
  labels = {
    "rayapp.io/pool"                = "gpu"
    "k8s.amazonaws.com/accelerator" = "nvidia" # or the autoscaler, while the GPU is not announced yet, starts a second node
  }
  taint     = { key = "nvidia.com/gpu", value = "present" }
  resources = { "nvidia.com/gpu" = "1" }
}

# Their pods need a node, or EKS calls the add-on degraded.
module "addons_on_nodes" {
  source     = "./modules/addons"
  depends_on = [module.cpu_nodes, module.pod_iam] # a pod that starts before its association gets no role

  cluster_name = module.eks.cluster_name
  addons = {
    coredns            = {}
    metrics-server     = {}
    aws-ebs-csi-driver = { role_arn = var.pod_iam == "irsa" ? module.pod_iam.role_arns["kube-system/ebs-csi-controller-sa"] : null }
  }
}

module "rds" {
  source = "./modules/rds"

  name                = local.cluster_name
  vpc_id              = module.network.vpc_id
  subnet_ids          = module.network.database_subnet_ids
  client_group_id     = module.eks.cluster_security_group_id
  instance_class      = local.profile.db_instance_class
  storage_gb          = local.profile.db_storage_gb
  multi_az            = local.profile.db_multi_az
  kms_key_arn         = module.kms.key_arn
  log_days            = local.profile.log_days
  deletion_protection = var.deletion_protection
}

module "s3" {
  source = "./modules/s3"

  bucket              = "${local.cluster_name}-${local.account_id}"
  kms_key_arn         = module.kms.key_arn
  deletion_protection = var.deletion_protection
}

module "ecr" {
  source = "./modules/ecr"

  repositories        = { rayapp = "${local.cluster_name}/rayapp", mlflow = "${local.cluster_name}/rayapp-mlflow" }
  kms_key_arn         = module.kms.key_arn
  deletion_protection = var.deletion_protection
}

module "secrets" {
  source = "./modules/secrets"

  names               = local.secret_names
  kms_key_arn         = module.kms.key_arn
  deletion_protection = var.deletion_protection
}

module "pod_iam" {
  source = "./modules/pod_iam"

  mode              = var.pod_iam
  cluster_name      = module.eks.cluster_name
  oidc_provider_arn = module.eks.oidc_provider_arn
  oidc_issuer       = module.eks.oidc_issuer
  account_id        = local.account_id
  region            = var.region
  vpc_id            = module.network.vpc_id
  bucket_arn        = module.s3.bucket_arn
  kms_key_arn       = module.kms.key_arn
  secret_arns       = concat(values(module.secrets.arns), [module.rds.secret_arn])
}

module "budget" {
  source = "./modules/budget"

  name         = local.cluster_name
  limit_usd    = local.budget_usd
  alert_emails = var.alert_emails
}

module "cost" {
  source = "./modules/cost"

  profile      = merge(local.profile, { node_disk_gb = local.node_disk_gb })
  secret_count = length(local.secret_names) + 1
  promised_usd = var.profile == "lean" ? 200 : null
}
