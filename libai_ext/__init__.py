"""What extends or repairs LiBai; knows nothing of MAE."""
