"""The wire contract between agent and collector, and the few things both sides must agree on."""
