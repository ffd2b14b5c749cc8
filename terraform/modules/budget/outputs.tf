output "limit_usd" {
  value = tonumber(aws_budgets_budget.this.limit_amount)
}

output "notifications" {
  value = aws_budgets_budget.this.notification
}
