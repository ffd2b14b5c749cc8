environment = "prod"
profile     = "standard"
