"""What a masked autoencoder predicts of the patches that it does not see."""
