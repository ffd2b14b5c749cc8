variable "name" {
  type = string
}

variable "kubernetes_version" {
  type = string
}

variable "subnet_ids" {
  description = "Private subnets."
  type        = list(string)
}

variable "kms_key_arn" {
  type = string
}

variable "admin_principal_arns" {
  type = list(string)
}

variable "public_access_cidrs" {
  description = "Empty: the API has no public endpoint."
  type        = list(string)

  validation {
    condition     = !contains(var.public_access_cidrs, "0.0.0.0/0")
    error_message = "public_access_cidrs holds 0.0.0.0/0: the Kubernetes API is not for the whole internet."
  }
}

variable "log_days" {
  type = number
}

variable "log_types" {
  description = "Logs of the control plane that are kept."
  type        = list(string)
}

variable "deletion_protection" {
  type = bool
}
