"""Audio data sets: rendered notes and folders of files."""
