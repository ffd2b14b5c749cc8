variable "names" {
  description = "Name of the secret by what it is for."
  type        = map(string)
}

variable "kms_key_arn" {
  type = string
}

variable "deletion_protection" {
  description = "false: a destroy deletes at once, so that the name is free again."
  type        = bool
}
