"""Audio backend: codecs, data sets and command line of coarse-to-fine audio generation."""
