"""Training of image-text models on TensorFlow; imports neither TFX nor Beam."""
