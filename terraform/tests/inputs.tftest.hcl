# What is refused before anything is made.
mock_provider "aws" {
  source = "./tests/mocks"
}

run "wrong_values" {
  command = plan
  variables {
    name                 = "R"
    environment          = "test"
    profile              = "lean"
    region               = "us-gov-west-1"
    zone_letters         = ["a", "a"]
    domain               = "https://ml.example.org"
    certificate_arn      = "arn:aws:acm:us-east-1:111122223333:certificate/0a1b2c3d"
    admin_principal_arns = []
    public_access_cidrs  = ["0.0.0.0/0"]
    pod_iam              = "node"
    alert_emails         = []
    budget_usd           = 201
    kubernetes_version   = "1.34"
    gpu_nodes_max        = 6
    gpu_instance_types   = ["g5.12xlarge"]
    nat_gateway_per_zone = true
    vpc_cidr             = "8.8.0.0/16"
  }
  expect_failures = [
    var.name, var.environment, var.region, var.zone_letters, var.domain, var.admin_principal_arns, var.public_access_cidrs, var.pod_iam,
    var.alert_emails, var.budget_usd, var.kubernetes_version, var.gpu_nodes_max, var.gpu_instance_types, var.nat_gateway_per_zone, var.vpc_cidr,
  ]
}

# Where the region is wrong too, the certificate is not looked at.
run "certificate_elsewhere" {
  command = plan
  variables {
    environment          = "dev"
    profile              = "large"
    domain               = "ml.example.org"
    certificate_arn      = "arn:aws:acm:eu-west-1:111122223333:certificate/0a1b2c3d"
    admin_principal_arns = ["arn:aws:iam::111122223333:role/admin"]
    alert_emails         = ["platform@example.org"]
  }
  expect_failures = [var.certificate_arn, var.profile]
}

run "open_api" {
  command = plan
  module {
    source = "./modules/eks"
  }
  variables {
    name                 = "rayapp-dev"
    kubernetes_version   = "1.36"
    subnet_ids           = ["subnet-1", "subnet-2"]
    kms_key_arn          = "arn:aws:kms:us-east-1:111122223333:key/1"
    admin_principal_arns = ["arn:aws:iam::111122223333:role/admin"]
    public_access_cidrs  = ["203.0.113.0/24", "0.0.0.0/0"]
    log_days             = 14
    log_types            = []
    deletion_protection  = true
  }
  expect_failures = [var.public_access_cidrs]
}
