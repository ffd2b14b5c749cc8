variable "name" {
  description = "First part of the name of everything."
  type        = string
  default     = "rayapp"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,14}[a-z0-9]$", var.name))
    error_message = "name is ${jsonencode(var.name)}: 3 to 16 small letters, digits and hyphens, as IAM role names end at 64 characters."
  }
}

variable "environment" {
  description = "Second part of the name of everything: dev or prod."
  type        = string

  validation {
    condition     = contains(["dev", "prod"], var.environment)
    error_message = "environment is ${jsonencode(var.environment)}: dev or prod."
  }
}

variable "profile" {
  description = "lean: at most 200 USD a month before GPU hours. standard: survives the loss of a zone. README.md says what lean gives up."
  type        = string

  validation {
    condition     = contains(["lean", "standard"], var.profile)
    error_message = "profile is ${jsonencode(var.profile)}: lean or standard."
  }
}

variable "region" {
  description = "AWS region. The estimate of the costs is for us-east-1."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^(us|eu|ap|ca|sa|me|af|il|mx)-[a-z]+-[0-9]$", var.region)) && !startswith(var.region, "us-gov")
    error_message = "region is ${jsonencode(var.region)}: a commercial region such as us-east-1; ARNs here start with arn:aws."
  }
}

variable "zone_letters" {
  description = "Zones of the region, the first two (lean) or three (standard) of which are used. Written down, not asked of AWS: a zone that is down must not make Terraform move the subnets."
  type        = list(string)
  default     = ["a", "b", "c"]

  validation {
    condition     = length(distinct(var.zone_letters)) >= (var.profile == "lean" ? 2 : 3) && alltrue([for letter in var.zone_letters : can(regex("^[a-z]$", letter))])
    error_message = "zone_letters is ${jsonencode(var.zone_letters)}: different letters, two for lean and three for standard."
  }
}

variable "domain" {
  description = "Domain of the host names: api.DOMAIN, mlflow.DOMAIN, ray.DOMAIN."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain))
    error_message = "domain is ${jsonencode(var.domain)}: a name such as ml.example.org, without scheme and slash."
  }
}

variable "certificate_arn" {
  description = "ACM certificate of *.DOMAIN in the same region. The load balancers serve nothing without TLS."
  type        = string

  validation {
    condition     = can(regex("^arn:aws:acm:${var.region}:[0-9]{12}:certificate/[0-9a-f-]+$", var.certificate_arn))
    error_message = "certificate_arn is ${jsonencode(var.certificate_arn)}: the ARN of an ACM certificate in ${var.region}."
  }
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster. Whoever creates it is no administrator by that alone."
  type        = list(string)

  validation {
    condition = length(var.admin_principal_arns) > 0 && alltrue([
      for arn in var.admin_principal_arns : can(regex("^arn:aws:iam::[0-9]{12}:(role|user)/[^*]+$", arn))
    ])
    error_message = "admin_principal_arns is ${jsonencode(var.admin_principal_arns)}: at least one ARN of an IAM role or user, without wildcards."
  }
}

variable "public_access_cidrs" {
  description = "IPv4 networks that may reach the Kubernetes API from the internet. Empty: only the VPC may."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for cidr in var.public_access_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]) >= 16, false)
    ])
    error_message = "public_access_cidrs is ${jsonencode(var.public_access_cidrs)}: IPv4 networks of /16 or smaller, such as 203.0.113.0/24; 0.0.0.0/0 is refused."
  }
}

variable "pod_iam" {
  description = "How pods get their IAM role: pod_identity (the EKS agent) or irsa (OIDC)."
  type        = string
  default     = "pod_identity"

  validation {
    condition     = contains(["pod_identity", "irsa"], var.pod_iam)
    error_message = "pod_iam is ${jsonencode(var.pod_iam)}: pod_identity or irsa."
  }
}

variable "alert_emails" {
  description = "Who is told when the month's costs pass the budget."
  type        = list(string)

  validation {
    condition     = length(var.alert_emails) > 0 && alltrue([for email in var.alert_emails : can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", email))])
    error_message = "alert_emails is ${jsonencode(var.alert_emails)}: at least one address, or nobody learns of the costs."
  }
}

variable "budget_usd" {
  description = "Monthly budget of the account. Without it: 200 in lean, 700 in standard."
  type        = number
  default     = null

  validation {
    condition     = var.budget_usd == null ? true : var.budget_usd > 0 && (var.profile != "lean" || var.budget_usd <= 200)
    error_message = "budget_usd is ${jsonencode(var.budget_usd)}: above 0, and at most 200 in the lean profile."
  }
}

variable "kubernetes_version" {
  description = "Version of EKS. 1.35 where a region does not list 1.36 yet: aws eks describe-cluster-versions."
  type        = string
  default     = "1.36"

  validation {
    condition     = can(regex("^1\\.(3[5-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version is ${jsonencode(var.kubernetes_version)}: 1.35 or newer; older ones cost six times as much in extended support."
  }
}

variable "gpu_nodes_max" {
  description = "Most GPU nodes at a time, each with one GPU. The least is 0: none runs while nothing needs one."
  type        = number
  default     = 5

  validation {
    condition     = var.gpu_nodes_max >= 1 && var.gpu_nodes_max <= 5 && floor(var.gpu_nodes_max) == var.gpu_nodes_max
    error_message = "gpu_nodes_max is ${var.gpu_nodes_max}: 1 to 5."
  }
}

variable "gpu_instance_types" {
  description = "What the spot market may give as a GPU node. The first is the one the autoscaler reckons with, so the smallest comes first."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge", "g4dn.xlarge", "g6.2xlarge"]

  validation {
    condition = length(var.gpu_instance_types) > 0 && alltrue([
      for type in var.gpu_instance_types : can(regex("^(g4dn|g5|g6|g6e)\\.(xlarge|2xlarge)$", type))
    ])
    error_message = "gpu_instance_types is ${jsonencode(var.gpu_instance_types)}: g4dn, g5, g6 or g6e in size xlarge or 2xlarge, which have one GPU each: 5 nodes are then 5 GPUs."
  }
}

variable "nat_gateway_per_zone" {
  description = "standard only: a NAT gateway in each zone, so that the loss of one cuts off no other. About 73 USD a month more."
  type        = bool
  default     = false

  validation {
    condition     = !var.nat_gateway_per_zone || var.profile == "standard"
    error_message = "nat_gateway_per_zone is true, but the lean profile has no NAT gateway: set profile to standard."
  }
}

variable "vpc_cidr" {
  description = "Network of the VPC, a /16."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(regex("^(10|172|192)\\.[0-9.]+/16$", var.vpc_cidr)) && can(cidrnetmask(var.vpc_cidr))
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}: a private IPv4 network of size /16."
  }
}

variable "deletion_protection" {
  description = "Keeps the database, the cluster, the bucket, the images and the secrets from being destroyed. Only the teardown sets it to false."
  type        = bool
  default     = true
}
