output "cluster_name" {
  value = aws_eks_cluster.this.name
}

output "cluster_security_group_id" {
  description = "Group of the control plane and of all nodes."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "oidc_provider_arn" {
  value = aws_iam_openid_connect_provider.this.arn
}

output "oidc_issuer" {
  description = "Without https://, as trust policies name it."
  value       = replace(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")
}

output "node_role_arn" {
  value      = aws_iam_role.node.arn
  depends_on = [aws_iam_role_policy_attachment.node] # a node without its policies never joins
}

output "endpoint" {
  description = "Who reaches the Kubernetes API."
  value = {
    private = aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    public  = aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    cidrs   = aws_eks_cluster.this.vpc_config[0].public_access_cidrs
  }
}
