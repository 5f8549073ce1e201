"""SNMP at the edge: client, guarded walks, profiles. Nothing here can write to a device: there is no SET."""
