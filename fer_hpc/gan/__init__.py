"""The expression-transfer GAN."""
