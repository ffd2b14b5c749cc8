variable "profile" {
  description = "What is always on, and what is reckoned with as used in a month."
  type = object({
    zones             = number
    nat_gateways      = number
    cpu_instance_type = string
    cpu_nodes_min     = number
    node_disk_gb      = number
    db_instance_class = string
    db_multi_az       = bool
    db_storage_gb     = number
    load_balancers    = number
    usage = object({
      volumes_gb     = number
      bucket_gb      = number
      images_gb      = number
      logs_gb        = number
      nat_gb         = number
      capacity_units = number
    })
  })
}

variable "secret_count" {
  type = number
}

variable "promised_usd" {
  description = "A plan whose total is above it fails."
  type        = number
  default     = null
}
