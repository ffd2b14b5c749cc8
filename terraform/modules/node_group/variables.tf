variable "name" {
  type = string
}

variable "cluster_name" {
  type = string
}

variable "kubernetes_version" {
  type = string
}

variable "role_arn" {
  type = string
}

variable "subnet_ids" {
  type = list(string)
}

variable "ami_type" {
  type = string
}

variable "capacity_type" {
  type = string
}

variable "instance_types" {
  type = list(string)
}

variable "nodes_min" {
  type = number
}

variable "nodes_max" {
  type = number
}

variable "disk_gb" {
  type = number
}

variable "disk_mb_per_s" {
  description = "Of the gp3 disk: 125 is in its price."
  type        = number
  default     = 125
}

variable "labels" {
  type = map(string)
}

variable "taint" {
  description = "Keeps off the pods that do not tolerate it (NoSchedule)."
  type        = object({ key = string, value = string })
  default     = null
}

variable "resources" {
  description = "What a node has beyond CPU and memory: the autoscaler cannot see it while there is no node."
  type        = map(string)
  default     = {}
}
