"""The commands: `tocsin-collector` (server) and `tocsin` (operator)."""
