output "vpc_id" {
  value = aws_vpc.this.id
}

output "private_subnet_ids" {
  value      = [for subnet in aws_subnet.private : subnet.id]
  depends_on = [aws_route.private, aws_route_table_association.private, aws_instance.nat] # no use before there is a way out
}

output "database_subnet_ids" {
  value = [for subnet in aws_subnet.database : subnet.id]
}

output "nat" {
  description = "How many of each there are, and over how many zones."
  value       = { gateways = length(aws_nat_gateway.this), instances = length(aws_instance.nat), zones = length(aws_subnet.private) }
}
