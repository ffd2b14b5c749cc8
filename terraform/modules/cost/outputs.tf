output "lines" {
  description = "USD a month by line."
  value       = local.lines
}

output "total" {
  value = sum(values(local.lines))

  precondition {
    condition     = var.promised_usd == null ? true : sum(values(local.lines)) <= var.promised_usd
    error_message = "estimated_monthly_usd is ${sum(values(local.lines))}: at most ${coalesce(var.promised_usd, 0)} is promised. Change locals.tf back."
  }
}

output "prices" {
  value = local.prices
}

output "gpu_hour_usd" {
  description = "On demand; spot is usually 30 to 70 % less."
  value = {
    "g4dn.xlarge" = local.price.g4dn_xlarge_hour
    "g5.xlarge"   = local.price.g5_xlarge_hour
    "g6.xlarge"   = local.price.g6_xlarge_hour
    "g6.2xlarge"  = local.price.g6_2xlarge_hour
  }
}
