# The AWS Load Balancer Controller and the cluster autoscaler: they read widely, and write only what carries the cluster's tag.
locals {
  own_tag = "elbv2.k8s.aws/cluster" # the controller puts it on all that it makes
  ec2_arn = "arn:aws:ec2:${var.region}:${var.account_id}"
  elb_arn = "arn:aws:elasticloadbalancing:${var.region}:${var.account_id}"

  is_new = { StringEquals = { "aws:RequestTag/${local.own_tag}" = var.cluster_name } }
  is_own = { StringEquals = { "aws:ResourceTag/${local.own_tag}" = var.cluster_name } }

  load_balancer_reads = {
    Sid    = "Read"
    Effect = "Allow"
    Action = [
      "acm:DescribeCertificate", "acm:ListCertificates", "ec2:Describe*", "ec2:GetSecurityGroupsForVpc", "elasticloadbalancing:Describe*",
      "shield:GetSubscriptionState", "waf-regional:GetWebACLForResource", "wafv2:GetWebACL", "wafv2:GetWebACLForResource",
    ]
    Resource = "*"
  }

  load_balancer_groups = [
    {
      Sid      = "MakeGroup"
      Effect   = "Allow"
      Action   = ["ec2:CreateSecurityGroup"]
      Resource = ["${local.ec2_arn}:security-group/*", "${local.ec2_arn}:vpc/${var.vpc_id}"]
    },
    {
      Sid       = "TagNewGroup"
      Effect    = "Allow"
      Action    = ["ec2:CreateTags"]
      Resource  = "${local.ec2_arn}:security-group/*"
      Condition = { StringEquals = merge(local.is_new.StringEquals, { "ec2:CreateAction" = "CreateSecurityGroup" }) }
    },
    {
      Sid       = "OwnGroup"
      Effect    = "Allow"
      Action    = ["ec2:CreateTags", "ec2:DeleteTags", "ec2:DeleteSecurityGroup"]
      Resource  = "${local.ec2_arn}:security-group/*"
      Condition = local.is_own
    },
    { # that of the nodes too, which must let the balancers in and carries no such tag
      Sid       = "Rules"
      Effect    = "Allow"
      Action    = ["ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"]
      Resource  = "${local.ec2_arn}:security-group/*"
      Condition = { ArnEquals = { "ec2:Vpc" = "${local.ec2_arn}:vpc/${var.vpc_id}" } }
    },
  ]

  load_balancer_writes = [
    {
      Sid       = "Make"
      Effect    = "Allow"
      Action    = ["elasticloadbalancing:CreateLoadBalancer", "elasticloadbalancing:CreateTargetGroup"]
      Resource  = ["${local.elb_arn}:loadbalancer/app/*", "${local.elb_arn}:targetgroup/*"]
      Condition = local.is_new
    },
    {
      Sid      = "TagNew"
      Effect   = "Allow"
      Action   = ["elasticloadbalancing:AddTags"]
      Resource = ["${local.elb_arn}:loadbalancer/app/*", "${local.elb_arn}:targetgroup/*", "${local.elb_arn}:listener/app/*", "${local.elb_arn}:listener-rule/app/*"]
      Condition = { StringEquals = merge(local.is_new.StringEquals, {
        "elasticloadbalancing:CreateAction" = ["CreateLoadBalancer", "CreateTargetGroup", "CreateListener", "CreateRule"]
      }) }
    },
    {
      Sid    = "Own"
      Effect = "Allow"
      Action = [
        "elasticloadbalancing:AddTags", "elasticloadbalancing:RemoveTags", "elasticloadbalancing:DeleteLoadBalancer", "elasticloadbalancing:DeleteTargetGroup",
        "elasticloadbalancing:DeregisterTargets", "elasticloadbalancing:ModifyLoadBalancerAttributes", "elasticloadbalancing:ModifyTargetGroup",
        "elasticloadbalancing:ModifyTargetGroupAttributes", "elasticloadbalancing:RegisterTargets", "elasticloadbalancing:SetIpAddressType",
        "elasticloadbalancing:SetSecurityGroups", "elasticloadbalancing:SetSubnets", "elasticloadbalancing:CreateListener",
        "elasticloadbalancing:DeleteListener", "elasticloadbalancing:ModifyListener", "elasticloadbalancing:ModifyListenerAttributes",
        "elasticloadbalancing:AddListenerCertificates", "elasticloadbalancing:RemoveListenerCertificates", "elasticloadbalancing:CreateRule",
        "elasticloadbalancing:DeleteRule", "elasticloadbalancing:ModifyRule", "elasticloadbalancing:SetRulePriorities",
      ]
      Resource  = ["${local.elb_arn}:loadbalancer/app/*", "${local.elb_arn}:targetgroup/*", "${local.elb_arn}:listener/app/*", "${local.elb_arn}:listener-rule/app/*"]
      Condition = local.is_own
    },
    {
      Sid       = "ServiceRole"
      Effect    = "Allow"
      Action    = ["iam:CreateServiceLinkedRole"]
      Resource  = "arn:aws:iam::${var.account_id}:role/aws-service-role/elasticloadbalancing.amazonaws.com/*"
      Condition = { StringEquals = { "iam:AWSServiceName" = "elasticloadbalancing.amazonaws.com" } }
    },
  ]

  autoscaler = [
    {
      Sid    = "Read"
      Effect = "Allow"
      Action = [
        "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLaunchConfigurations",
        "autoscaling:DescribeScalingActivities", "autoscaling:DescribeTags", "ec2:DescribeImages", "ec2:DescribeInstanceTypes",
        "ec2:DescribeLaunchTemplateVersions", "ec2:GetInstanceTypesFromInstanceRequirements", "eks:DescribeNodegroup",
      ]
      Resource = "*"
    },
    {
      Sid       = "Scale"
      Effect    = "Allow"
      Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
      Resource  = "arn:aws:autoscaling:${var.region}:${var.account_id}:autoScalingGroup:*"
      Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.cluster_name}" = "owned" } }
    },
  ]

  controller_policies = {
    "kube-system/aws-load-balancer-controller" = jsonencode({
      Version   = "2012-10-17"
      Statement = concat([local.load_balancer_reads], local.load_balancer_groups, local.load_balancer_writes)
    })
    "kube-system/cluster-autoscaler" = jsonencode({ Version = "2012-10-17", Statement = local.autoscaler })
  }
}
