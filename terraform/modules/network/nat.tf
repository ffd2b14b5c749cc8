# Either gateways, which AWS keeps alive, or one instance for a tenth of the price, which stands in one zone.
resource "aws_eip" "gateway" {
  for_each = toset(slice(var.zones, 0, var.nat_gateways))

  domain = "vpc"
  tags   = { Name = "${var.name}-nat-${each.key}" }
}

resource "aws_nat_gateway" "this" {
  for_each   = aws_eip.gateway
  depends_on = [aws_internet_gateway.this]

  allocation_id = each.value.id
  subnet_id     = aws_subnet.public[each.key].id
  tags          = { Name = "${var.name}-${each.key}" }
}

locals {
  nat_instances = var.nat_gateways == 0 ? 1 : 0
}

data "aws_ssm_parameter" "amazon_linux" {
  count = local.nat_instances

  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"
}

resource "aws_security_group" "nat" {
  #checkov:skip=CKV_AWS_382:it forwards whatever the nodes send
  count = local.nat_instances

  name        = "${var.name}-nat"
  description = "NAT instance: in from the VPC, out to anywhere"
  vpc_id      = aws_vpc.this.id

  ingress {
    description = "From the VPC"
    protocol    = "-1"
    from_port   = 0
    to_port     = 0
    cidr_blocks = [var.cidr]
  }

  egress {
    description = "To the internet"
    protocol    = "-1"
    from_port   = 0
    to_port     = 0
    cidr_blocks = ["0.0.0.0/0"]
  }
}

# Routes point at the interface, which outlives the instance; the address is there before the instance starts.
resource "aws_network_interface" "nat" {
  count = local.nat_instances

  subnet_id         = aws_subnet.public[var.zones[0]].id
  security_groups   = [aws_security_group.nat[0].id]
  source_dest_check = false
  tags              = { Name = "${var.name}-nat" }
}

resource "aws_eip" "instance" {
  count      = local.nat_instances
  depends_on = [aws_internet_gateway.this]

  domain            = "vpc"
  network_interface = aws_network_interface.nat[0].id
  tags              = { Name = "${var.name}-nat" }
}

resource "aws_instance" "nat" {
  #checkov:skip=CKV2_AWS_41:it calls no AWS API, so it has no role
  #checkov:skip=CKV_AWS_126:minute metrics cost as much as half the instance
  count      = local.nat_instances
  depends_on = [aws_eip.instance, aws_route.public, aws_route_table_association.public] # it downloads a package at start

  ami                         = data.aws_ssm_parameter.amazon_linux[0].value
  instance_type               = "t4g.nano"
  ebs_optimized               = true
  user_data                   = templatefile("${path.module}/nat.sh.tftpl", { cidr = var.cidr })
  user_data_replace_on_change = true
  tags                        = { Name = "${var.name}-nat" }

  primary_network_interface {
    network_interface_id = aws_network_interface.nat[0].id
  }

  credit_specification {
    cpu_credits = "standard" # no surprise on the bill
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = 8
  }

  lifecycle {
    ignore_changes = [ami] # a new image is no reason to cut the nodes off; taint the instance to take it
  }
}
