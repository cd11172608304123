"""Pictures of what a masked autoencoder does."""
