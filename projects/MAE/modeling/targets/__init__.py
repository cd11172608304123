"""What a masked autoencoder predicts for the patches that it does not see."""
