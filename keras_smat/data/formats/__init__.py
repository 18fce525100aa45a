"""Where images are stored: one file per format."""
