"""What rayapp is compared with. These files run in an environment of their own (.venv-bench), beside rayapp's."""
