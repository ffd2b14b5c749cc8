"""Settings: frozen pydantic models, and the one reader of the environment."""
