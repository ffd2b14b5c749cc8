# Empty boxes: cluster/scripts/setup fills them, so that no value is in a variable, in the state or in git.
resource "aws_secretsmanager_secret" "this" {
  for_each = var.names

  name                    = each.value
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.deletion_protection ? 30 : 0
}
