output "kms_key" {
  description = "The same key, known only once every service may use it: whoever takes it from here waits for that."
  value       = var.kms_key
  depends_on  = [google_kms_crypto_key_iam_member.service]
}
