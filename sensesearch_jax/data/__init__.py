"""Data: what the policy learns from and is tested on."""
