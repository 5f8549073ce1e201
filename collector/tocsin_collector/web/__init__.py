"""The web process: pages and the JSON API. Reads the store, never writes it; changes go to the engine as Commands."""
