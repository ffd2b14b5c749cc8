# What each service account may do on AWS, and who may take its role.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  mode              = "pod_identity"
  cluster_name      = "rayapp-dev"
  oidc_provider_arn = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
  oidc_issuer       = "oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
  account_id        = "111122223333"
  region            = "us-east-1"
  vpc_id            = "vpc-1"
  bucket_arn        = "arn:aws:s3:::bucket"
  kms_key_arn       = "arn:aws:kms:us-east-1:111122223333:key/1"
  secret_arns       = ["arn:aws:secretsmanager:us-east-1:111122223333:secret:a", "arn:aws:secretsmanager:us-east-1:111122223333:secret:b"]
}

run "pod_identity" {
  command = plan
  module {
    source = "./modules/pod_iam"
  }

  assert {
    condition = alltrue([for account, role in aws_iam_role.this :
      jsondecode(role.assume_role_policy).Statement[0].Principal == { Service = "pods.eks.amazonaws.com" }
    && "${jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/kubernetes-namespace"]}/${jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/kubernetes-service-account"]}" == account])
    error_message = "modules/pod_iam/main.tf: aws_iam_role.this.assume_role_policy: a role can be taken by another service account."
  }
  assert {
    condition     = keys(aws_eks_pod_identity_association.this) == keys(aws_iam_role.this)
    error_message = "modules/pod_iam/main.tf: aws_eks_pod_identity_association.this: a role has no association."
  }
  assert {
    condition = alltrue(flatten([for account, policy in aws_iam_role_policy.this : [for statement in jsondecode(policy.policy).Statement :
    statement.Resource != "*" || can(regex("^Read$", statement.Sid))]]))
    error_message = "modules/pod_iam: aws_iam_role_policy.this: Resource \"*\" outside a statement that only reads."
  }
  assert {
    condition = alltrue(flatten([for account, policy in aws_iam_role_policy.this : [for statement in jsondecode(policy.policy).Statement :
    [for action in flatten([statement.Action]) : !can(regex("^(\\*|[a-z0-9]+:\\*)$", action))]]]))
    error_message = "modules/pod_iam: aws_iam_role_policy.this: an action is a whole service."
  }
  # Resources by verb, of every account that touches the bucket.
  assert {
    condition = {
      for account in ["airflow/airflow", "mlflow/mlflow", "rayapp/ray-jobs", "rayapp/ray-serve"] : account => {
        for statement in jsondecode(aws_iam_role_policy.this[account].policy).Statement : statement.Sid => [
          for arn in statement.Resource : trimprefix(arn, "arn:aws:s3:::bucket/")
        ] if contains(["Read", "Write", "Delete"], statement.Sid)
      }
      } == {
      "airflow/airflow"  = { Read = ["logs/airflow/*"], Write = ["logs/airflow/*"] }
      "mlflow/mlflow"    = { Read = ["mlflow/*"], Write = ["mlflow/*"], Delete = ["mlflow/*"] }
      "rayapp/ray-jobs"  = { Read = ["data/*", "runs/*", "predictions/*"], Write = ["runs/*", "predictions/*"], Delete = ["runs/*", "predictions/*"] }
      "rayapp/ray-serve" = { Write = ["requests/*"] }
    }
    error_message = "modules/pod_iam/storage.tf: local.storage: an account reaches other prefixes of the bucket than it should."
  }
  assert {
    condition     = toset(jsondecode(aws_iam_role_policy.this["external-secrets/external-secrets"].policy).Statement[0].Resource) == toset(var.secret_arns)
    error_message = "modules/pod_iam/storage.tf: external-secrets reads other secrets than those of the platform."
  }
  assert {
    condition = alltrue([for statement in jsondecode(aws_iam_role_policy.this["kube-system/cluster-autoscaler"].policy).Statement :
    statement.Sid == "Read" || try(statement.Condition.StringEquals["aws:ResourceTag/k8s.io/cluster-autoscaler/rayapp-dev"], "") == "owned"])
    error_message = "modules/pod_iam/controllers.tf: local.autoscaler scales groups of other clusters."
  }
  assert {
    condition = alltrue([for statement in jsondecode(aws_iam_role_policy.this["kube-system/aws-load-balancer-controller"].policy).Statement :
    contains(["Read", "MakeGroup"], statement.Sid) || can(statement.Condition)])
    error_message = "modules/pod_iam/controllers.tf: the load balancer controller changes what is not its own (a statement has no Condition)."
  }
}

run "irsa" {
  command = plan
  module {
    source = "./modules/pod_iam"
  }
  variables {
    mode = "irsa"
  }

  assert {
    condition = alltrue([for account, role in aws_iam_role.this : jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals == {
      "oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE:sub" = "system:serviceaccount:${replace(account, "/", ":")}"
      "oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE:aud" = "sts.amazonaws.com"
    } && jsondecode(role.assume_role_policy).Statement[0].Principal.Federated == var.oidc_provider_arn])
    error_message = "modules/pod_iam/main.tf: aws_iam_role.this.assume_role_policy: with irsa a role can be taken by another service account."
  }
  assert {
    condition     = length(aws_eks_pod_identity_association.this) == 0
    error_message = "modules/pod_iam/main.tf: aws_eks_pod_identity_association.this is made with irsa too."
  }
}
