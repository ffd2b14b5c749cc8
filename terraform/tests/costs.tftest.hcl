# The estimate by itself; profiles.tftest.hcl asks for its values.
variables {
  secret_count = 3
  profile = {
    zones       = 2, nat_gateways = 0, cpu_instance_type = "t3a.large", cpu_nodes_min = 1, node_disk_gb = 50, db_instance_class = "db.t4g.micro"
    db_multi_az = false, db_storage_gb = 20, load_balancers = 1
    usage       = { volumes_gb = 10, bucket_gb = 30, images_gb = 20, logs_gb = 6, nat_gb = 50, capacity_units = 0.5 }
  }
}

run "prices" {
  command = plan
  module {
    source = "./modules/cost"
  }

  assert {
    condition = alltrue([for name, price in output.prices :
    can(regex("^https://aws\\.amazon\\.com/.+/pricing/", price.source)) && can(regex("^(20[0-9]{2}(-[01][0-9])?|unconfirmed)$", price.seen))])
    error_message = "modules/cost/prices.tf: a price has no source or does not say when it was seen."
  }
  assert {
    condition     = length([for price in output.prices : price if price.seen == "unconfirmed"]) == 10 && strcontains(file("README.md"), "Ten were not confirmed")
    error_message = "README.md: the number of prices that nobody confirmed is not that of modules/cost/prices.tf."
  }
  # By hand: 73 + 54.896 + 60 x 0.08 + (3.066 + 0.64) + 3 x 3.65 + (16.425 + 2.92) + (11.68 + 2.3) + (0.69 + 2) + 3 + 2.2
  assert {
    condition     = output.total == 188.58
    error_message = "modules/cost/main.tf: the total is ${output.total}, not 188.58 as reckoned by hand."
  }
}

run "too_dear" {
  command = plan
  module {
    source = "./modules/cost"
  }
  variables {
    promised_usd = 188
  }
  expect_failures = [output.total]
}
