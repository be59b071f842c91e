"""Whether scores held, and what was gained: parity and latency. Knows no backend."""
