variable "name" {
  type = string
}

variable "cidr" {
  description = "A /16."
  type        = string
}

variable "zones" {
  type = list(string)
}

variable "nat_gateways" {
  description = "0: a NAT instance. 1: one gateway for all zones. As many as zones: one each."
  type        = number

  validation {
    condition     = contains([0, 1, length(var.zones)], var.nat_gateways)
    error_message = "nat_gateways is ${var.nat_gateways}: 0, 1, or one for each of the ${length(var.zones)} zones."
  }
}

variable "kms_key_arn" {
  type = string
}

variable "log_days" {
  type = number
}

variable "region" {
  type = string
}
