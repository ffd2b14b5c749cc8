# The network in both ways of reaching the internet.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name         = "rayapp-dev"
  region       = "us-east-1"
  cidr         = "10.40.0.0/16"
  zones        = ["us-east-1a", "us-east-1b"]
  nat_gateways = 0
  kms_key_arn  = "arn:aws:kms:us-east-1:111122223333:key/1"
  log_days     = 14
}

run "instance" {
  module {
    source = "./modules/network"
  }

  assert {
    condition = alltrue([
      for subnet in concat(values(aws_subnet.public), values(aws_subnet.private), values(aws_subnet.database)) : !subnet.map_public_ip_on_launch
    ])
    error_message = "modules/network/main.tf: map_public_ip_on_launch of a subnet is true: something would get a public address by itself."
  }
  assert {
    condition     = !contains([for route in concat([aws_route.public], values(aws_route.private)) : route.route_table_id], aws_route_table.database.id)
    error_message = "modules/network/main.tf: aws_route_table.database has a route: the database is to have no way out."
  }
  assert {
    condition     = alltrue([for association in aws_route_table_association.database : association.route_table_id == aws_route_table.database.id])
    error_message = "modules/network/main.tf: aws_route_table_association.database: a database subnet has another route table."
  }
  assert {
    condition     = alltrue([for route in aws_route.private : route.network_interface_id == aws_network_interface.nat[0].id && route.gateway_id != aws_internet_gateway.this.id])
    error_message = "modules/network/main.tf: aws_route.private does not lead through the NAT instance."
  }
  assert {
    condition     = length(distinct([for subnet in concat(values(aws_subnet.public), values(aws_subnet.private), values(aws_subnet.database)) : subnet.cidr_block])) == 6
    error_message = "modules/network/main.tf: cidr_block of two subnets is the same."
  }
  assert {
    condition     = alltrue([for rule in aws_security_group.nat[0].ingress : tolist(rule.cidr_blocks) == tolist([var.cidr])])
    error_message = "modules/network/nat.tf: aws_security_group.nat.ingress lets in more than the VPC."
  }
  assert {
    condition     = aws_instance.nat[0].root_block_device[0].encrypted && aws_instance.nat[0].metadata_options[0].http_tokens == "required"
    error_message = "modules/network/nat.tf: aws_instance.nat: root_block_device.encrypted or metadata_options.http_tokens."
  }
  assert {
    condition     = !aws_network_interface.nat[0].source_dest_check
    error_message = "modules/network/nat.tf: aws_network_interface.nat.source_dest_check must be false, or it forwards nothing."
  }
  assert {
    condition     = aws_cloudwatch_log_group.flow.kms_key_id == var.kms_key_arn && aws_flow_log.this.vpc_id == aws_vpc.this.id
    error_message = "modules/network/flow_log.tf: aws_flow_log.this or aws_cloudwatch_log_group.flow.kms_key_id."
  }
  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && length(aws_vpc_endpoint.s3.route_table_ids) == 2
    error_message = "modules/network/main.tf: aws_vpc_endpoint.s3 does not serve the private subnets of both zones."
  }
  assert {
    condition     = aws_subnet.public["us-east-1a"].tags["kubernetes.io/role/elb"] == "1" && aws_subnet.private["us-east-1a"].tags["kubernetes.io/role/internal-elb"] == "1"
    error_message = "modules/network/main.tf: tags of the subnets: the load balancer controller finds them by kubernetes.io/role."
  }
}

run "gateways" {
  module {
    source = "./modules/network"
  }
  variables {
    nat_gateways = 2
  }

  assert {
    condition = alltrue([
      for zone, route in aws_route.private : route.nat_gateway_id == aws_nat_gateway.this[zone].id && aws_nat_gateway.this[zone].subnet_id == aws_subnet.public[zone].id
    ])
    error_message = "modules/network/main.tf: aws_route.private does not lead through the NAT gateway of its own zone."
  }
  assert {
    condition     = length(aws_instance.nat) == 0
    error_message = "modules/network/nat.tf: aws_instance.nat runs beside NAT gateways."
  }
}
