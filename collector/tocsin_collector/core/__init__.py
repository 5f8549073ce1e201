"""Pure decisions: per sample, per incident. No I/O, no clock, no randomness; time and ids come in as arguments."""
