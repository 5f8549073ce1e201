"""The edge: probes, spool, uplink. Never imports the collector, never NumPy."""
