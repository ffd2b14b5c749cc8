variable "bucket" {
  type = string
}

variable "kms_key_arn" {
  type = string
}

variable "deletion_protection" {
  description = "false: a destroy deletes the objects too."
  type        = bool
}
