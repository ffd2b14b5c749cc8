output "role_arns" {
  description = "By namespace/serviceaccount."
  value       = { for account, role in aws_iam_role.this : account => role.arn }
}
