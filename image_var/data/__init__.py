"""Image data sets: Fashion-MNIST and folders of files."""
