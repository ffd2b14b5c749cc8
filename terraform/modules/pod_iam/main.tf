# One role for each service account that calls AWS, keyed namespace/serviceaccount. A role answers to that account alone.
locals {
  policies = merge(local.storage_policies, local.controller_policies)
  managed_policies = {
    "kube-system/ebs-csi-controller-sa" = "arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
  }

  accounts = {
    for account in concat(keys(local.policies), keys(local.managed_policies)) :
    account => { namespace = split("/", account)[0], name = split("/", account)[1] }
  }

  trust = {
    for account, parts in local.accounts : account => var.mode == "irsa" ? {
      Effect    = "Allow"
      Action    = ["sts:AssumeRoleWithWebIdentity"]
      Principal = { Federated = var.oidc_provider_arn }
      Condition = { StringEquals = {
        "${var.oidc_issuer}:sub" = "system:serviceaccount:${parts.namespace}:${parts.name}"
        "${var.oidc_issuer}:aud" = "sts.amazonaws.com"
      } }
      } : {
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
      Condition = { StringEquals = {
        "aws:RequestTag/eks-cluster-name"           = var.cluster_name
        "aws:RequestTag/kubernetes-namespace"       = parts.namespace
        "aws:RequestTag/kubernetes-service-account" = parts.name
      } }
    }
  }
}

resource "aws_iam_role" "this" {
  for_each = local.accounts

  name               = "${var.cluster_name}-${each.value.namespace}-${each.value.name}"
  assume_role_policy = jsonencode({ Version = "2012-10-17", Statement = [local.trust[each.key]] })
}

resource "aws_iam_role_policy" "this" {
  #checkov:skip=CKV_AWS_355:describe and list calls of ec2, elasticloadbalancing, autoscaling, eks and acm take no narrower resource
  #checkov:skip=CKV_AWS_290:the writes of the two controllers carry a tag condition or an ARN of this account, see controllers.tf
  for_each = local.policies

  name   = "use"
  role   = aws_iam_role.this[each.key].name
  policy = each.value
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = local.managed_policies

  role       = aws_iam_role.this[each.key].name
  policy_arn = each.value
}

resource "aws_eks_pod_identity_association" "this" {
  for_each = var.mode == "pod_identity" ? local.accounts : {}

  cluster_name    = var.cluster_name
  namespace       = each.value.namespace
  service_account = each.value.name
  role_arn        = aws_iam_role.this[each.key].arn
}
