# Where data rests: key, database, bucket, images, secrets.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name                = "rayapp-dev"
  account_id          = "111122223333"
  region              = "us-east-1"
  kms_key_arn         = "arn:aws:kms:us-east-1:111122223333:key/1"
  log_days            = 14
  deletion_protection = true
}

run "kms" {
  command = plan
  module {
    source = "./modules/kms"
  }

  assert {
    condition     = aws_kms_key.this.enable_key_rotation
    error_message = "modules/kms/main.tf: aws_kms_key.this.enable_key_rotation is false."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_kms_key.this.policy).Statement : statement.Principal != "*" && try(statement.Principal.AWS, "") != "*"])
    error_message = "modules/kms/main.tf: aws_kms_key.this.policy lets anybody use the key."
  }
}

run "rds" {
  module {
    source = "./modules/rds"
  }
  variables {
    vpc_id          = "vpc-1"
    subnet_ids      = ["subnet-1", "subnet-2"]
    client_group_id = "sg-nodes"
    instance_class  = "db.t4g.small"
    storage_gb      = 40
    multi_az        = true
  }

  assert {
    condition     = !aws_db_instance.this.publicly_accessible
    error_message = "modules/rds/main.tf: aws_db_instance.this.publicly_accessible is true."
  }
  assert {
    condition     = aws_db_instance.this.storage_encrypted && aws_db_instance.this.kms_key_id == var.kms_key_arn
    error_message = "modules/rds/main.tf: aws_db_instance.this.storage_encrypted is false, or kms_key_id is not ours."
  }
  assert {
    condition     = aws_db_instance.this.manage_master_user_password && aws_db_instance.this.master_user_secret_kms_key_id == var.kms_key_arn
    error_message = "modules/rds/main.tf: aws_db_instance.this.manage_master_user_password: RDS is to keep the password, encrypted with the key."
  }
  assert {
    condition     = contains([for parameter in aws_db_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"], "rds.force_ssl=1")
    error_message = "modules/rds/main.tf: aws_db_parameter_group.this.parameter: rds.force_ssl is not 1."
  }
  assert {
    condition     = aws_db_instance.this.parameter_group_name == aws_db_parameter_group.this.name
    error_message = "modules/rds/main.tf: aws_db_instance.this.parameter_group_name is another than that with rds.force_ssl."
  }
  assert {
    condition     = aws_db_instance.this.deletion_protection && !aws_db_instance.this.skip_final_snapshot && aws_db_instance.this.backup_retention_period == 14
    error_message = "modules/rds/main.tf: aws_db_instance.this: deletion_protection, skip_final_snapshot or backup_retention_period."
  }
  assert {
    condition     = aws_db_instance.this.multi_az && aws_db_instance.this.storage_type == "gp3"
    error_message = "modules/rds/main.tf: aws_db_instance.this: multi_az or storage_type is not what was asked for."
  }
  assert {
    condition = (
      aws_vpc_security_group_ingress_rule.nodes.referenced_security_group_id == "sg-nodes"
      && aws_vpc_security_group_ingress_rule.nodes.from_port == 5432 && aws_vpc_security_group_ingress_rule.nodes.to_port == 5432
    )
    error_message = "modules/rds/main.tf: aws_vpc_security_group_ingress_rule.nodes lets in more than port 5432 from the nodes."
  }
  assert {
    condition = (
      toset(aws_db_instance.this.enabled_cloudwatch_logs_exports) == toset(keys(aws_cloudwatch_log_group.this))
      && alltrue([for group in aws_cloudwatch_log_group.this : group.kms_key_id == var.kms_key_arn])
    )
    error_message = "modules/rds/main.tf: aws_cloudwatch_log_group.this: a log of the database has no encrypted group."
  }
  assert {
    condition     = output.secret_arn == "arn:aws:secretsmanager:us-east-1:111122223333:secret:rds"
    error_message = "modules/rds/outputs.tf: secret_arn is not the secret that RDS made."
  }
}

run "s3" {
  command = plan
  module {
    source = "./modules/s3"
  }
  variables {
    bucket = "rayapp-dev-111122223333"
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "modules/s3/main.tf: aws_s3_bucket_public_access_block.this: all four are to be true."
  }
  assert {
    condition = (
      try(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm, "") == "aws:kms"
      && try(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].kms_master_key_id, "") == var.kms_key_arn
    )
    error_message = "modules/s3/main.tf: aws_s3_bucket_server_side_encryption_configuration.this: sse_algorithm aws:kms with our key."
  }
  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "modules/s3/main.tf: aws_s3_bucket_versioning.this.versioning_configuration.status is not Enabled."
  }
  assert {
    condition = anytrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
    statement.Effect == "Deny" && statement.Principal == "*" && statement.Action == "s3:*" && try(statement.Condition.Bool["aws:SecureTransport"], "") == "false"])
    error_message = "modules/s3/main.tf: aws_s3_bucket_policy.this does not deny requests without TLS (aws:SecureTransport)."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement : statement.Effect == "Deny"])
    error_message = "modules/s3/main.tf: aws_s3_bucket_policy.this allows something; roles do that."
  }
  assert {
    condition     = aws_s3_bucket_ownership_controls.this.rule[0].object_ownership == "BucketOwnerEnforced" && !aws_s3_bucket.this.force_destroy
    error_message = "modules/s3/main.tf: aws_s3_bucket_ownership_controls.this.rule.object_ownership or aws_s3_bucket.this.force_destroy."
  }
  assert {
    condition = anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
    try(rule.noncurrent_version_expiration[0].noncurrent_days == 30 && rule.abort_incomplete_multipart_upload[0].days_after_initiation == 7, false)])
    error_message = "modules/s3/main.tf: aws_s3_bucket_lifecycle_configuration.this: old versions or broken uploads are kept for ever."
  }
  assert {
    condition = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
    length(rule.expiration) == 0 || (rule.filter[0].prefix != null && !can(regex("^(mlflow|data|$)", rule.filter[0].prefix)))])
    error_message = "modules/s3/main.tf: aws_s3_bucket_lifecycle_configuration.this expires models or data sets."
  }
}

run "ecr" {
  command = plan
  module {
    source = "./modules/ecr"
  }
  variables {
    repositories = { rayapp = "rayapp-dev/rayapp", mlflow = "rayapp-dev/rayapp-mlflow" }
  }

  assert {
    condition     = alltrue([for repository in aws_ecr_repository.this : repository.image_tag_mutability == "IMMUTABLE"])
    error_message = "modules/ecr/main.tf: aws_ecr_repository.this.image_tag_mutability is not IMMUTABLE."
  }
  assert {
    condition     = alltrue([for repository in aws_ecr_repository.this : repository.image_scanning_configuration[0].scan_on_push && !repository.force_delete])
    error_message = "modules/ecr/main.tf: aws_ecr_repository.this: image_scanning_configuration.scan_on_push or force_delete."
  }
  assert {
    condition = alltrue([for repository in aws_ecr_repository.this :
    repository.encryption_configuration[0].encryption_type == "KMS" && repository.encryption_configuration[0].kms_key == var.kms_key_arn])
    error_message = "modules/ecr/main.tf: aws_ecr_repository.this.encryption_configuration: KMS with our key."
  }
}

run "secrets" {
  command = plan
  module {
    source = "./modules/secrets"
  }
  variables {
    names = { mlflow = "rayapp-dev/mlflow", serving = "rayapp-dev/serving" }
  }

  assert {
    condition     = alltrue([for secret in aws_secretsmanager_secret.this : secret.kms_key_id == var.kms_key_arn && secret.recovery_window_in_days == 30])
    error_message = "modules/secrets/main.tf: aws_secretsmanager_secret.this: kms_key_id or recovery_window_in_days."
  }
}
