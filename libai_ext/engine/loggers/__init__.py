"""Services besides the files of a run that get its metrics, such as Weights & Biases."""
