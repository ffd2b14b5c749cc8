# Who may do what below which prefix of the bucket, and who may read the secrets.
locals {
  storage = {
    "rayapp/ray-jobs"  = { read = ["data", "runs", "predictions"], write = ["runs", "predictions"], delete = ["runs", "predictions"] }
    "rayapp/ray-serve" = { read = [], write = ["requests"], delete = [] }
    "mlflow/mlflow"    = { read = ["mlflow"], write = ["mlflow"], delete = ["mlflow"] }
    "airflow/airflow"  = { read = ["logs/airflow"], write = ["logs/airflow"], delete = [] } # its web server shows the logs
  }

  actions = {
    read   = ["s3:GetObject"]
    write  = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    delete = ["s3:DeleteObject"]
  }

  # IfExists: pyarrow asks for the bucket as such before it writes, and that request has no prefix.
  listing = {
    for account, may in local.storage : account => {
      Sid       = "List"
      Effect    = "Allow"
      Action    = ["s3:ListBucket"]
      Resource  = var.bucket_arn
      Condition = { StringLikeIfExists = { "s3:prefix" = flatten([for prefix in may.read : [prefix, "${prefix}/*"]]) } }
    } if length(may.read) > 0
  }

  objects = {
    for account, may in local.storage : account => [
      for verb, prefixes in may : {
        Sid      = title(verb)
        Effect   = "Allow"
        Action   = local.actions[verb]
        Resource = [for prefix in prefixes : "${var.bucket_arn}/${prefix}/*"]
      } if length(prefixes) > 0
    ]
  }

  key_use = {
    Sid       = "Key"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = var.kms_key_arn
    Condition = { StringEquals = { "kms:ViaService" = "s3.${var.region}.amazonaws.com" } }
  }

  storage_policies = merge(
    {
      for account, statements in local.objects : account => jsonencode({
        Version   = "2012-10-17"
        Statement = concat(statements, [for owner, statement in local.listing : statement if owner == account], [local.key_use])
      })
    },
    {
      "external-secrets/external-secrets" = jsonencode({
        Version = "2012-10-17"
        Statement = [
          {
            Sid      = "Read"
            Effect   = "Allow"
            Action   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
            Resource = var.secret_arns
          },
          {
            Sid       = "Key"
            Effect    = "Allow"
            Action    = ["kms:Decrypt"]
            Resource  = var.kms_key_arn
            Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" } }
          },
        ]
      })
    },
  )
}
