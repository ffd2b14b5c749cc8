variable "repositories" {
  description = "Name of the repository by image."
  type        = map(string)
}

variable "kms_key_arn" {
  type = string
}

variable "deletion_protection" {
  description = "false: a destroy deletes the images too."
  type        = bool
}
