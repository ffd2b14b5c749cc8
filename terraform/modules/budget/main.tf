# Of the whole account: a filter by tag would miss what is not tagged, which is what surprises.
resource "aws_budgets_budget" "this" {
  name         = var.name
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(var.limit_usd)
  limit_unit   = "USD"

  # No warning below 100 %: in lean the base alone is near it, and a warning that always comes is none.
  dynamic "notification" {
    for_each = ["FORECASTED", "ACTUAL"]
    content {
      notification_type          = notification.value
      comparison_operator        = "GREATER_THAN"
      threshold                  = 100
      threshold_type             = "PERCENTAGE"
      subscriber_email_addresses = var.alert_emails
    }
  }
}
