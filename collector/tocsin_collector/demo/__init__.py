"""The demo: simulated devices and the story that `tocsin demo` tells."""
