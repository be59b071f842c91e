"""Reference detectors: trained on normal images, one family a file."""
