terraform {
  required_version = ">= 1.9, < 2.0" # 1.9: validations that look at other variables
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 7.0"
    }
    google-beta = { # flex-template jobs and service identities exist nowhere else
      source  = "hashicorp/google-beta"
      version = ">= 6.50, < 7.0"
    }
  }
}
