output "names" {
  value = { for use, secret in aws_secretsmanager_secret.this : use => secret.name }
}

output "arns" {
  value = { for use, secret in aws_secretsmanager_secret.this : use => secret.arn }
}
