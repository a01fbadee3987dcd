output "emails" {
  description = "The accounts: worker, launcher, scheduler."
  value       = { for name, account in local.accounts : name => account.email }
}
