environment = "dev"
profile     = "lean"
