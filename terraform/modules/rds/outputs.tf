output "host" {
  value = aws_db_instance.this.address
}

output "port" {
  value = aws_db_instance.this.port
}

output "database_name" {
  value = aws_db_instance.this.db_name
}

output "secret_arn" {
  value = aws_db_instance.this.master_user_secret[0].secret_arn
}

output "multi_az" {
  value = aws_db_instance.this.multi_az
}

output "instance_class" {
  value = aws_db_instance.this.instance_class
}

output "deletion_protection" {
  value = aws_db_instance.this.deletion_protection
}
