# List prices of us-east-1 in USD: on demand, without tax, discounts and the free tier. source: where AWS keeps the price.
# seen: when an article or a copy of that page last confirmed it; "unconfirmed": taken from memory. None was put beside a bill.
locals {
  prices = {
    eks_cluster_hour   = { usd = 0.10, seen = "2026", source = "https://aws.amazon.com/eks/pricing/" }
    t3a_large_hour     = { usd = 0.0752, seen = "unconfirmed", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    m6a_xlarge_hour    = { usd = 0.1728, seen = "unconfirmed", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    t4g_nano_hour      = { usd = 0.0042, seen = "2026", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    ebs_gp3_gb         = { usd = 0.08, seen = "unconfirmed", source = "https://aws.amazon.com/ebs/pricing/" }
    nat_gateway_hour   = { usd = 0.045, seen = "2026", source = "https://aws.amazon.com/vpc/pricing/" }
    nat_gateway_gb     = { usd = 0.045, seen = "2026", source = "https://aws.amazon.com/vpc/pricing/" }
    public_ipv4_hour   = { usd = 0.005, seen = "unconfirmed", source = "https://aws.amazon.com/vpc/pricing/" }
    load_balancer_hour = { usd = 0.0225, seen = "2026-05", source = "https://aws.amazon.com/elasticloadbalancing/pricing/" }
    capacity_unit_hour = { usd = 0.008, seen = "2026-05", source = "https://aws.amazon.com/elasticloadbalancing/pricing/" }
    db_t4g_micro_hour  = { usd = 0.016, seen = "2026", source = "https://aws.amazon.com/rds/postgresql/pricing/" }
    db_t4g_small_hour  = { usd = 0.032, seen = "2026", source = "https://aws.amazon.com/rds/postgresql/pricing/" }
    db_gp3_gb          = { usd = 0.115, seen = "2026-06", source = "https://aws.amazon.com/rds/postgresql/pricing/" }
    s3_gb              = { usd = 0.023, seen = "unconfirmed", source = "https://aws.amazon.com/s3/pricing/" }
    ecr_gb             = { usd = 0.10, seen = "unconfirmed", source = "https://aws.amazon.com/ecr/pricing/" }
    log_gb             = { usd = 0.50, seen = "2026-06", source = "https://aws.amazon.com/cloudwatch/pricing/" }
    kms_key            = { usd = 1.00, seen = "2026-03", source = "https://aws.amazon.com/kms/pricing/" }
    secret             = { usd = 0.40, seen = "unconfirmed", source = "https://aws.amazon.com/secrets-manager/pricing/" }
    g4dn_xlarge_hour   = { usd = 0.526, seen = "unconfirmed", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    g5_xlarge_hour     = { usd = 1.006, seen = "2026-06", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    g6_xlarge_hour     = { usd = 0.8048, seen = "unconfirmed", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
    g6_2xlarge_hour    = { usd = 0.9776, seen = "unconfirmed", source = "https://aws.amazon.com/ec2/pricing/on-demand/" }
  }
  price       = { for name, price in local.prices : name => price.usd }
  month_hours = 730
}
