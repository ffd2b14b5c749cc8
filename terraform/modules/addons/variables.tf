variable "cluster_name" {
  type = string
}

variable "addons" {
  description = "By name. Without a version EKS takes its default for the version of Kubernetes."
  type = map(object({
    configuration = optional(string)
    role_arn      = optional(string)
  }))
}
