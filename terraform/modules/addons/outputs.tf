output "configurations" {
  description = "By add-on."
  value       = { for name, addon in aws_eks_addon.this : name => addon.configuration_values }
}
