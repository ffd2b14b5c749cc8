resource "aws_launch_template" "this" {
  name_prefix            = "${var.cluster_name}-${var.name}-"
  update_default_version = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # pods do not reach it: they have roles of their own
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      encrypted             = true
      volume_type           = "gp3"
      volume_size           = var.disk_gb
      throughput            = var.disk_mb_per_s
      delete_on_termination = true
    }
  }

  # Without it T instances are "unlimited": beyond their credits each core costs 0.05 USD an hour, which nobody would see.
  dynamic "credit_specification" {
    for_each = alltrue([for type in var.instance_types : can(regex("^t[0-9]", type))]) ? ["standard"] : []
    content {
      cpu_credits = credit_specification.value
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = { Name = "${var.cluster_name}-${var.name}" }
    }
  }
}

resource "aws_eks_node_group" "this" {
  cluster_name    = var.cluster_name
  node_group_name = var.name
  node_role_arn   = var.role_arn
  subnet_ids      = var.subnet_ids
  version         = var.kubernetes_version
  ami_type        = var.ami_type
  capacity_type   = var.capacity_type
  instance_types  = var.instance_types
  labels          = var.labels

  launch_template {
    id      = aws_launch_template.this.id
    version = aws_launch_template.this.latest_version
  }

  scaling_config {
    min_size     = var.nodes_min
    max_size     = var.nodes_max
    desired_size = var.nodes_min
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  dynamic "taint" {
    for_each = var.taint[*]
    content {
      key    = taint.value.key
      value  = taint.value.value
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }
}

# EKS does not hand labels and taints on to the Auto Scaling group, where the autoscaler reads what a node of an empty group
# would be like. Without these a GPU pod waits for ever.
locals {
  template = "k8s.io/cluster-autoscaler/node-template"
  autoscaler_tags = merge(
    { for key, value in var.labels : "${local.template}/label/${key}" => value },
    { for key, value in var.resources : "${local.template}/resources/${key}" => value },
    { for taint in var.taint[*] : "${local.template}/taint/${taint.key}" => "${taint.value}:NoSchedule" },
    { "${local.template}/label/eks.amazonaws.com/capacityType" = var.capacity_type },
  )
}

resource "aws_autoscaling_group_tag" "this" {
  for_each = local.autoscaler_tags

  autoscaling_group_name = aws_eks_node_group.this.resources[0].autoscaling_groups[0].name

  tag {
    key                 = each.key
    value               = each.value
    propagate_at_launch = false
  }
}
