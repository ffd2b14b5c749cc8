variable "name" {
  type = string
}

variable "vpc_id" {
  type = string
}

variable "subnet_ids" {
  description = "Subnets without a route to the internet."
  type        = list(string)
}

variable "client_group_id" {
  description = "Security group that may connect."
  type        = string
}

variable "instance_class" {
  type = string
}

variable "storage_gb" {
  type = number
}

variable "multi_az" {
  type = bool
}

variable "kms_key_arn" {
  type = string
}

variable "log_days" {
  type = number
}

variable "deletion_protection" {
  type = bool
}
