"""One folder for each backend of Keras."""
