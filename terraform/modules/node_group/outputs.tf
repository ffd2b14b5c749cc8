output "name" {
  value = aws_eks_node_group.this.node_group_name
}

output "nodes" {
  description = "What the group is made of."
  value = {
    capacity_type  = aws_eks_node_group.this.capacity_type
    instance_types = aws_eks_node_group.this.instance_types
    ami_type       = aws_eks_node_group.this.ami_type
    min            = aws_eks_node_group.this.scaling_config[0].min_size
    max            = aws_eks_node_group.this.scaling_config[0].max_size
    labels         = aws_eks_node_group.this.labels
    taints         = aws_eks_node_group.this.taint
    tags           = { for key, tag in aws_autoscaling_group_tag.this : key => tag.tag[0].value }
  }
}
